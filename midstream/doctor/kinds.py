"""Recognises the proxy at an address by its traces, and says what to change in its configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from midstream.doctor.observe import Observation

_RESPONSE_TRACES = (
    ("cloudflare", "cf-ray", "."),
    ("cloudflare", "server", r"^cloudflare"),
    ("cloudfront", "via", r"cloudfront"),
    ("cloudfront", "x-amz-cf-id", "."),
    ("alb", "server", r"^awselb"),
    ("nextjs", "x-powered-by", r"next\.js"),
    ("nextjs", "x-vercel-id", "."),
    ("nextjs", "server", r"^vercel"),
    ("nginx", "server", r"^(nginx|openresty|tengine)"),
    ("caddy", "server", r"^caddy"),
    ("caddy", "via", r"\bcaddy"),
    ("haproxy", "via", r"haproxy"),
    ("haproxy", "server", r"^haproxy"),
    ("envoy", "server", r"^(envoy|istio-envoy)"),
    ("envoy", "x-envoy-upstream-service-time", "."),
    ("varnish", "via", r"varnish"),
    ("apache", "server", r"^apache"),
    ("google", "via", r"\bgoogle"),
)
_REQUEST_TRACES = (("alb", "x-amzn-trace-id"), ("cloudflare", "cf-ray"), ("nextjs", "x-vercel-id"))
"""Request headers, as the gateway reports them: no response shows them."""

NAMES = {
    "nginx": "nginx",
    "caddy": "Caddy",
    "haproxy": "HAProxy",
    "alb": "AWS ALB",
    "cloudflare": "Cloudflare",
    "nextjs": "Next.js",
    "cloudfront": "CloudFront",
    "envoy": "Envoy",
    "varnish": "Varnish",
    "apache": "Apache",
    "google": "Google Cloud load balancer",
}
_ALIASES = {"next": "nextjs", "vercel": "nextjs", "elb": "alb", "ingress": "nginx"}


@dataclass(frozen=True, slots=True)
class Trace:
    """What shows that a response has come through a proxy of this kind."""

    kind: str
    where: str
    """The header that shows it."""


def traces(observation: Observation) -> list[Trace]:
    """Returns every trace of a proxy in one response, the most reliable first."""
    found = []
    for kind, name, pattern in _RESPONSE_TRACES:
        value = observation.header(name)
        if value and re.search(pattern, value, re.IGNORECASE):
            found.append(Trace(kind, f"{'-'.join(part.capitalize() for part in name.split('-'))}: {value[:40]}"))
    for kind, name in _REQUEST_TRACES:
        if observation.seen.get(name):
            found.append(Trace(kind, f"{name}, as the gateway saw it"))
    return found


def kind_of(name: str, here: Sequence[Trace], before: Sequence[Trace]) -> tuple[str, str]:
    """Returns the kind of proxy that an address adds to the one before it, and the evidence; both empty if unknown.

    A trace that the address before shows as well was passed on: an HAProxy in front of nginx still says `Server: nginx`.
    """
    for word in re.findall(r"[a-z.]+", name.lower()):
        plain = word.replace(".", "")
        kind = _ALIASES.get(plain, plain)
        if kind in NAMES:
            return kind, "as it was named"
    old = {trace.kind for trace in before}
    for trace in here:
        if trace.kind not in old:
            return trace.kind, trace.where
    return "", ""


_NGINX = {
    "buffering": [
        "proxy_buffering off;",
        "proxy_http_version 1.1;",
        "remove: proxy_ignore_headers X-Accel-Buffering;",
    ],
    "caching": ["proxy_cache off;", "remove: proxy_ignore_headers Cache-Control;    and: proxy_cache_valid any ..."],
    "compression": [
        "gzip off;      # in this location; or remove text/event-stream (or *) from gzip_types",
        "brotli off;    # if the module is there",
    ],
    "idle": ["proxy_read_timeout 75s;    # more than the gateway's keep-alive interval"],
    "comments": ["proxy_buffering off;"],
    "last_event_id": [
        'remove: proxy_set_header Last-Event-ID "";    or: proxy_pass_request_headers off;',
    ],
    "leaving": ["proxy_ignore_client_abort off;"],
    "http_version": [
        "proxy_http_version 1.1;",
        'proxy_set_header Connection "";    # with keepalive 64; in the upstream',
    ],
    "http2": ["listen 443 ssl http2;    # nginx 1.25.1 and later: listen 443 ssl; http2 on;"],
    "framing": ["chunked_transfer_encoding on;", "proxy_buffering off;"],
    "headers": [
        "proxy_pass_header X-Accel-Buffering;",
        "remove: proxy_hide_header Cache-Control;    and any: expires ...;",
    ],
    "no_content": ["proxy_intercept_errors off;    # and no error_page 204"],
    "age": ["not a directive: check keepalive_time, reloads (worker_shutdown_timeout), and proxies before nginx"],
}
_CADDY = {
    "buffering": [
        "remove from reverse_proxy: buffer_responses, response_buffers",
        "no flush_interval is needed: Caddy flushes text/event-stream at once by itself",
    ],
    "compression": [
        "@plain not path /v1/streams/* /v1/chat/* /v1/responses* /api/chat* /stream /v1/probe",
        "encode @plain gzip",
    ],
    "caching": ["remove the cache module's directive for these paths"],
    "idle": ["transport http { read_timeout 75s }    # or leave it out: there is none by default"],
    "last_event_id": ["remove: header_up -Last-Event-ID"],
    "leaving": ["remove: flush_interval -1    # with it Caddy keeps the request when the client has left"],
    "http_version": ["transport http { versions 1.1 }", "remove: header_up Connection close"],
    "http2": ["an https:// site address: Caddy speaks HTTP/2 by itself; remove: servers { protocols h1 }"],
    "framing": ["remove: flush_interval, response_buffers"],
    "headers": ["remove: header Cache-Control ..., header_down Cache-Control ..."],
    "no_content": ["remove the handle_response or handle_errors that catches 204"],
    "age": ["remove: stream_timeout, servers { timeouts { write ... } }"],
}
_HAPROXY = {
    "buffering": ["option http-no-delay    # without it events wait up to 200 ms for a full packet"],
    "caching": ["remove: http-response cache-store"],
    "compression": ["remove text/event-stream from: compression type"],
    "idle": ["timeout server 75s    # more than the gateway's keep-alive interval", "timeout client 75s"],
    "last_event_id": ["remove: http-request del-header Last-Event-ID"],
    "leaving": [
        "defaults",
        "    option abortonclose    # in defaults: up to version 2.8 it has no effect in a backend",
    ],
    "http_version": ["remove: option httpclose, http-request set-header Connection close"],
    "http2": ["bind :443 ssl crt ... alpn h2,http/1.1"],
    "framing": ["remove: http-response del-header Transfer-Encoding, errorfile rules that gather bodies"],
    "headers": ["remove: http-response set-header Cache-Control ..."],
    "no_content": ["remove the http-response return or http-error that catches 204"],
    "age": ["look for: timeout tunnel, hard-stop-after (reloads), and rules that close"],
}
_ALB = {
    "buffering": ["an ALB does not buffer; a Lambda target does: use an ip or instance target"],
    "idle": [
        "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN "
        "--attributes Key=idle_timeout.timeout_seconds,Value=75",
    ],
    "http_version": ["target group: --protocol-version HTTP1"],
    "http2": ["attribute routing.http2.enabled=true, and an HTTPS listener"],
    "last_event_id": ["listener rules with header modification: remove Last-Event-ID from them"],
    "age": ["target group: deregistration_delay.timeout_seconds (300) ends responses of targets that leave"],
}
_CLOUDFLARE = {
    "buffering": [
        "Caching > Cache Rules: Bypass cache for /v1/streams/*, /stream, /v1/probe",
        "a tunnel: run cloudflared without --no-chunked-encoding; a Worker: return new Response(upstream.body)",
        "Network > Response Buffering: off (Enterprise); nothing that rewrites bodies (Email Obfuscation) for these paths",
    ],
    "compression": [
        "Rules > Compression Rules: these paths, No compression (Cache-Control: no-transform asks for the same)"
    ],
    "idle": ["proxy_read_timeout is fixed (524) below Enterprise: keep MIDSTREAM_KEEPALIVE_SECONDS well under it"],
    "last_event_id": ["Rules > Transform Rules > Modify Request Header: remove the rule for Last-Event-ID"],
    "caching": ["Caching > Cache Rules: Bypass cache for /v1/streams/*, /stream, /v1/probe"],
    "headers": ["Rules > Transform Rules, and Browser Cache TTL: Respect Existing Headers"],
    "http2": ["Speed > Settings > Protocol: HTTP/2 on"],
}
_NEXTJS = {
    "buffering": [
        "do not go through rewrites() for streams; a Route Handler passes the body on:",
        "  export const dynamic = 'force-dynamic'",
        "  const upstream = await fetch(url, { headers: { 'last-event-id': id }, signal: request.signal })",
        "  return new Response(upstream.body, { status: upstream.status, headers: upstream.headers })",
    ],
    "compression": ["next.config.js: compress: false"],
    "idle": ["next.config.js: experimental: { proxyTimeout: 75_000 }    # rewrites; 30 s without it"],
    "last_event_id": [
        "a Route Handler must pass it on: fetch(url, { headers: { 'last-event-id': request.headers.get('last-event-id') } })"
    ],
    "leaving": ["a Route Handler must hand its signal on: fetch(url, { signal: request.signal })"],
    "caching": ["a Route Handler: export const dynamic = 'force-dynamic', and fetch(url, { cache: 'no-store' })"],
    "headers": ["next.config.js headers(), or the Route Handler: pass Content-Type and Cache-Control on"],
    "no_content": ["a Route Handler must pass the status on: new Response(null, { status: 204 })"],
    "age": ["on a serverless platform: export const maxDuration = 300, or let readers go straight to the gateway"],
}
_DIRECTIVES = {
    "nginx": _NGINX,
    "caddy": _CADDY,
    "haproxy": _HAPROXY,
    "alb": _ALB,
    "cloudflare": _CLOUDFLARE,
    "nextjs": _NEXTJS,
}
_ANY = {
    "buffering": ["turn response buffering off for text/event-stream"],
    "compression": ["turn compression off for text/event-stream"],
    "idle": [
        "a read (idle) timeout of 75 s or more on both sides; or a smaller MIDSTREAM_KEEPALIVE_SECONDS at the gateway"
    ],
    "comments": ["nothing may parse and rewrite the stream"],
    "last_event_id": ["pass the request header Last-Event-ID on"],
    "leaving": ["close the connection to the gateway when the client has gone"],
    "http_version": ["speak HTTP/1.1 with keep-alive to the gateway"],
    "http2": ["offer h2 by ALPN"],
    "framing": ["pass the response on as it comes, chunked"],
    "caching": ["do not store text/event-stream; heed Cache-Control: no-cache"],
    "headers": ["pass Content-Type, Cache-Control and X-Accel-Buffering on as they are"],
    "no_content": ["pass 204 on as it is"],
    "age": ["no limit on the duration of a response, or one of at least 15 minutes"],
}
_SILENT = ("nginx", "haproxy")
"""The most likely proxies without a trace: HAProxy sets no header, and nginx's may have been removed."""


def changes(check: str, kind: str) -> list[str]:
    """Returns what to change, as lines of configuration; for an unknown kind the goal, and the lines of the most likely proxies."""
    known = _DIRECTIVES.get(kind, {}).get(check)
    if known:
        return list(known)
    lines = list(_ANY.get(check, []))
    if kind:
        return lines
    return lines + [f"{NAMES[name]}: {_DIRECTIVES[name][check][0]}" for name in _SILENT if check in _DIRECTIVES[name]]

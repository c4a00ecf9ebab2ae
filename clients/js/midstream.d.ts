/** A client of Midstream's native API: docs/how-to/use-the-javascript-client.md. */

/** The address of a stream: `…/v1/streams/{id}`, with or without `/events`. In a page it may be relative. */
export type StreamUrl = string | URL;

interface Happened {
  /** `<attempt>-<offset>`; `live` and `gap` have none. */
  id?: string;
  /** The text of the first choice as it stands after this event. */
  text: string;
}

/** More text. */
export interface Token extends Happened {
  type: "token";
  token: string;
}

/** More than plain text, as the Chat Completions API has it: a tool call, reasoning, another choice. */
export interface Delta extends Happened {
  type: "delta";
  delta: Record<string, any>;
  index?: number;
  logprobs?: Record<string, any>;
  finish_reason?: string;
}

export interface Started extends Happened {
  type: "started";
  attempt: number;
  model: string;
}

/** A new attempt has begun. It keeps the first `base` increments; `text` has lost the others already. */
export interface Restarted extends Happened {
  type: "restarted";
  attempt: number;
  base: number;
  reason: string;
}

/** All that was there has come; what follows is new. */
export interface Live extends Happened {
  type: "live";
  offset: number;
}

/** The events between these ids are lost for everybody. The text goes on behind them. */
export interface Gap extends Happened {
  type: "gap";
  requested: string;
  first_available: string;
}

/** An event of the application's own: its name, and its data as JSON, or as text where it is no JSON. */
export interface OwnEvent extends Happened {
  type: "event";
  name: string;
  data: any;
}

/** The connection is lost. `follow` tries again by itself, in `wait_ms` milliseconds. */
export interface Lost {
  type: "lost";
  error: Error;
  wait_ms: number;
  text: string;
}

export interface Done extends Happened {
  type: "done";
  finish_reason: string | null;
  /** The answer was cut off at its length limit. */
  truncated: boolean;
  usage: Record<string, any> | null;
}

export interface Failed extends Happened {
  type: "failed";
  code: string;
  message: string;
  /** Whether a new stream with the same request may succeed. */
  retryable: boolean;
}

export interface Cancelled extends Happened {
  type: "cancelled";
  by: "client" | "disconnect" | "operator" | "writer";
}

/** The last event of a stream: done, cut off (`truncated`), failed, or stopped. */
export type End = Done | Failed | Cancelled;
export type StreamEvent = Token | Delta | Started | Restarted | Live | Gap | OwnEvent | Lost | End;

export interface CallOptions {
  /** Ends the request, and all waiting. */
  signal?: AbortSignal;
  /** Returns the bearer token of the next try. `refused`: the last one got a 401 or 403. The second refusal in a row is final. */
  token?: (refused: boolean) => string | undefined | Promise<string | undefined>;
  /** Sent with each request. */
  headers?: Record<string, string>;
  /** Another `fetch`. In React Native, one that streams: `import { fetch } from "expo/fetch"`. */
  fetch?: (url: string, init: any) => Promise<any>;
  /** A request to which nothing has come for so long is tried again: by default 40 s, more than two keep-alive comments. */
  stallMs?: number;
  /** After so long the last error is thrown: without a connection for `follow` (a day), without a whole answer for the others (a minute). */
  giveUpMs?: number;
}

/** `localStorage`, React Native's `AsyncStorage`, or alike. */
export interface PlaceStorage {
  getItem(key: string): string | null | undefined | Promise<string | null | undefined>;
  setItem(key: string, value: string): unknown;
  removeItem(key: string): unknown;
}

export interface FollowOptions extends CallOptions {
  /** Follow from behind this event. The text then begins behind it, too. */
  after?: string;
  /** Keeps the place and the text, so that a reloaded page or restarted program goes on there. Emptied at the stream's end. */
  storage?: PlaceStorage;
}

/** A Chat Completions request. */
export interface AnswerRequest {
  messages: any[];
  model?: string;
  midstream?: {
    on_disconnect?: "continue" | { cancel_after: number };
    on_interrupt?: "restart" | "continue" | "fail";
    metadata?: Record<string, string>;
  };
  [parameter: string]: any;
}

export interface Created {
  id: string;
  status: State["status"];
  created_at: number;
  events_url: string;
  /** The stream's address, for the other functions. */
  url: string;
}

export interface State {
  id: string;
  status: "queued" | "running" | "completed" | "failed" | "cancelled";
  text: string;
  tokens: number;
  attempt: number;
  model: string | null;
  finish_reason: string | null;
  truncated: boolean;
  usage: Record<string, any> | null;
  error: { code: string; message: string; retryable: boolean } | null;
  cancelled_by: "client" | "disconnect" | "operator" | "writer" | null;
  created_at: number | null;
  started_at: number | null;
  ended_at: number | null;
  metadata: Record<string, string>;
}

export interface Receipt {
  id: string;
  status: State["status"];
  generated: { tokens: number; usage: Record<string, any> | null; attempts: Record<string, any>[] };
  delivered: { tokens: number; connections: Record<string, any>[] };
  undelivered_tokens: number;
  [field: string]: any;
}

/** A request that failed for good: refused, or tried until `giveUpMs` was over. */
export class StreamError extends Error {
  /** The HTTP status; 0 without one. */
  status: number;
  /** Whether the same request may succeed later. */
  retryable: boolean;
  /** From `Retry-After`; 0 without it. */
  retryAfterMs?: number;
}

/** Requests an answer from the address of `/v1/streams`. However often it is tried, there is one generation. */
export function create(
  url: string | URL,
  request: AnswerRequest,
  options?: CallOptions & { idempotencyKey?: string },
): Promise<Created>;

/**
 * Yields a stream's events, each once and in order, over as many connections as it takes; the last is `done`, `failed` or
 * `cancelled`. Throws StreamError where no retry can help (404, 410, a token that was refused twice), or the signal's reason.
 */
export function follow(url: StreamUrl, options?: FollowOptions): AsyncGenerator<StreamEvent, void, void>;

/** Stops the answer, and returns its state. May be repeated; an ended stream stays as it is. */
export function cancel(url: StreamUrl, options?: CallOptions): Promise<State>;

/** Returns what was generated, and what was delivered over which connection. */
export function receipt(url: StreamUrl, options?: CallOptions): Promise<Receipt>;

/** Returns the state and the text; with `waitSeconds` (up to 600) when the stream has ended or the time is up. */
export function state(url: StreamUrl, options?: CallOptions & { waitSeconds?: number }): Promise<State>;

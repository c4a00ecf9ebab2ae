"""Receives webhooks. Run it with: WEBHOOK_SECRET=whsec_... uvicorn examples.webhook_receiver:app --port 9000"""

import os

from fastapi import FastAPI, Request, Response
from standardwebhooks import Webhook, WebhookVerificationError

app, webhook = FastAPI(), Webhook(os.environ["WEBHOOK_SECRET"])
known: set[str] = set()  # a table of your database with the id as its key, so that a restart does not forget them


@app.post("/ended")
async def ended(request: Request) -> Response:
    try:
        event = webhook.verify(await request.body(), dict(request.headers))  # the bytes as they came
    except WebhookVerificationError:
        return Response(status_code=401)
    if request.headers["webhook-id"] not in known:  # each comes at least once, sometimes twice
        known.add(request.headers["webhook-id"])
        print(event["type"], event["data"]["id"], event["data"]["receipt"]["generated"]["tokens"], flush=True)
    return Response(status_code=204)

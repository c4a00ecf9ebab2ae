// A page with examples/react-hook, mounted twice as React's strict mode does it.
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { useAnswer } from "useAnswer";

function Page() {
  const { text, status, error, url, ask, stop } = useAnswer("/v1/streams", { first: sessionStorage.url ?? "" });
  sessionStorage.url = url;
  Object.assign(globalThis, { ask, stop });
  return <main data-status={status} data-error={error?.message}>{text}</main>;
}

createRoot(document.body).render(<StrictMode><Page /></StrictMode>);

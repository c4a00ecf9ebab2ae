"use client";
import { useEffect, useState } from "react";

export default function Page() {
  const [id, setId] = useState("");
  const [text, setText] = useState("");
  const [status, setStatus] = useState("");

  useEffect(() => setId(location.hash.slice(1)), []); // a reloaded page goes on with its answer
  useEffect(() => {
    if (!id) return;
    location.hash = id;
    const pieces = [];
    const source = new EventSource(`/answers/${id}/events`);
    source.onmessage = ({ data }) => setText((pieces.push(JSON.parse(data).token ?? ""), pieces.join("")));
    source.addEventListener("restarted", ({ data }) => (pieces.length = JSON.parse(data).base));
    for (const end of ["done", "failed", "cancelled"]) source.addEventListener(end, () => (setStatus(end), source.close()));
    return () => source.close();
  }, [id]);

  async function ask(form) {
    const response = await fetch("/answers", { method: "POST", body: JSON.stringify({ question: form.get("question") }) });
    setId((await response.json()).id);
  }

  return (
    <form action={ask}>
      <input name="question" defaultValue="Tell me about rivers." /> <button>Ask</button>
      <button type="button" onClick={() => fetch(`/answers/${id}/stop`, { method: "POST" })}>Stop</button>
      <p id="text">{text}</p><p id="status">{status}</p>
    </form>
  );
}

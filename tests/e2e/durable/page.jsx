// A chat whose answers come by the Durable Streams protocol: useChat with the transport of @durable-streams, unchanged.
// It keeps what was asked over a reload, and puts its hook where a test can reach it.
import { useChat } from '@ai-sdk/react';
import { createDurableChatTransport } from '@durable-streams/aisdk-transport';
import { createRoot } from 'react-dom/client';

const query = new URLSearchParams(location.search);
const id = query.get('chat');
const kept = JSON.parse(localStorage.getItem(id) ?? '[]');
const transport = createDurableChatTransport({
  api: '/api/chat',
  reconnectApi: query.has('replay') ? `/api/chat/${id}/stream?ended=replay` : undefined,
  headers: { accept: 'application/json', ...(query.has('key') && { authorization: `Bearer ${query.get('key')}` }) },
});

window.finished = [];
window.seen = [];

function Chat() {
  const chat = useChat({
    id,
    messages: kept,
    resume: true,
    transport,
    onFinish: ({ finishReason, isAbort, isDisconnect, isError }) =>
      window.finished.push({ finishReason, isAbort, isDisconnect, isError }),
  });
  window.chat = chat;
  window.ask = (text, body) => {
    const asked = { id: crypto.randomUUID(), role: 'user', parts: [{ type: 'text', text }] };
    localStorage.setItem(id, JSON.stringify([...chat.messages, asked]));
    void chat.sendMessage({ text }, { body });
  };
  const answer = chat.messages.at(-1);
  const parts = answer?.role === 'assistant' ? answer.parts : [];
  const text = parts.filter(part => part.type === 'text').map(part => part.text).join('');
  if (window.seen.at(-1) !== text) window.seen.push(text);
  return <pre data-status={chat.status}>{text}</pre>;
}

createRoot(document.getElementById('root')).render(<Chat />);

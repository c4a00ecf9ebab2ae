// A chat as an application has it: useChat with resume. It keeps what was asked and what was answered over a reload, and
// puts its hook where a test can reach it.
import { useChat } from '@ai-sdk/react';
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } from 'ai';
import { createRoot } from 'react-dom/client';

const query = new URLSearchParams(location.search);
const id = query.get('chat');
const kept = JSON.parse(localStorage.getItem(id) ?? '[]');
const keep = messages => localStorage.setItem(id, JSON.stringify(messages));

window.finished = [];
window.seen = [];

function Chat() {
  const chat = useChat({
    id,
    messages: kept,
    resume: true,
    transport: new DefaultChatTransport({
      api: '/api/chat',
      prepareReconnectToStreamRequest: ({ id }) =>
        query.has('replay') ? { api: `/api/chat/${encodeURIComponent(id)}/stream?ended=replay` } : {},
    }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onFinish: ({ message, messages, finishReason, isAbort, isDisconnect, isError }) => {
      window.finished.push({ finishReason, isAbort, isDisconnect, isError });
      if (query.has('keep')) keep(messages);
    },
  });
  const answer = chat.messages.at(-1);
  window.chat = chat;
  window.ask = (text, body) => {
    keep([...chat.messages, { id: crypto.randomUUID(), role: 'user', parts: [{ type: 'text', text }] }]);
    void chat.sendMessage({ text }, { body });
  };
  window.stopNow = async () => {
    const response = await fetch(`/api/chat/${encodeURIComponent(id)}/stop`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ activeStreamId: answer?.metadata?.streamId, assistantMessage: answer }),
    });
    return response.json();
  };
  const text = answer?.role === 'assistant' ? textOf(answer) : '';
  if (window.seen.at(-1) !== text) window.seen.push(text);
  return <pre data-status={chat.status}>{text}</pre>;
}

function textOf(message) {
  return message.parts.filter(part => part.type === 'text').map(part => part.text).join('');
}

createRoot(document.getElementById('root')).render(<Chat />);

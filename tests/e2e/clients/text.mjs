// node text.mjs URL: the text as fetch reads it, and whether the body was whole.
const response = await fetch(process.argv[2]);
let text = '';
try {
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) text += part;
  console.log(JSON.stringify({ text, whole: true }));
} catch (error) {
  console.log(JSON.stringify({ text, whole: false, error: error.cause?.code ?? error.cause?.message }));
}

// Speaks with OpenAI's client and the Vercel AI SDK, and prints what each did as one line of JSON.
import OpenAI from 'openai'
import { generateSpeech } from 'ai'
import { createOpenAI } from '@ai-sdk/openai'

const baseURL = `${process.env.URL}/v1`
const apiKey = process.env.KEY
const client = new OpenAI({ baseURL, apiKey })
const results = {}

const spoken = await client.audio.speech.create({ model: 'gpt-4o-mini-tts', voice: 'alloy', input: 'From JavaScript.', response_format: 'pcm' })
results.whole = (await spoken.arrayBuffer()).byteLength

const streamed = await client.audio.speech.create({ model: 'tts-1', voice: 'alloy', input: 'Streamed to JavaScript.', response_format: 'pcm' })
results.streamed = 0
for await (const chunk of streamed.body) results.streamed += chunk.length

results.models = (await client.models.list()).data.map((model) => model.id)

try {
  await client.audio.speech.create({ model: 'tts-1', voice: 'onyx', input: 'Who?' })
} catch (error) {
  results.error = { isNotFound: error instanceof OpenAI.NotFoundError, code: error.code, message: error.message, hasId: !!error.requestID }
}

const { audio } = await generateSpeech({
  model: createOpenAI({ baseURL, apiKey }).speech('tts-1'), text: 'From the AI SDK.', voice: 'alloy', outputFormat: 'mp3',
})
results.aiSdk = { mediaType: audio.mediaType, size: audio.uint8Array.length }
console.log(JSON.stringify(results))

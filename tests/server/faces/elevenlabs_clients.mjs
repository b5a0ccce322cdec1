// Speaks with ElevenLabs' client and the Vercel AI SDK, and prints what each did as one line of JSON.
import { createReadStream } from 'node:fs'
import { ElevenLabsClient, ElevenLabs } from '@elevenlabs/elevenlabs-js'
import { createElevenLabs } from '@ai-sdk/elevenlabs'
import { generateSpeech } from 'ai'

const baseUrl = `${process.env.URL}/elevenlabs`
const apiKey = process.env.KEY
const client = new ElevenLabsClient({ baseUrl, apiKey })
const results = {}

async function size(stream) {
  let bytes = 0
  for await (const chunk of stream) bytes += chunk.length
  return bytes
}

results.whole = await size(await client.textToSpeech.convert('me', { text: 'From JavaScript.', modelId: 'eleven_multilingual_v2', outputFormat: 'pcm_24000' }))
results.streamed = await size(await client.textToSpeech.stream('me', { text: 'Streamed to JavaScript.', outputFormat: 'pcm_24000' }))

results.voices = (await client.voices.getAll()).voices.map((voice) => voice.name)
results.found = (await client.voices.search({ search: 'm' })).voices.map((voice) => voice.name)
results.models = (await client.models.list()).map((model) => model.modelId)
results.tier = (await client.user.subscription.get()).tier
results.userTier = (await client.user.get()).subscription.tier
results.history = (await client.history.list()).history.length

const { voiceId } = await client.voices.ivc.create({ name: 'From JavaScript', files: [createReadStream(process.env.RECORDING)], labels: { accent: 'none' } })
const { name, category } = await client.voices.get(voiceId)
results.cloned = { name, category }
await client.voices.settings.get(voiceId)
await client.voices.delete(voiceId)

try {
  await client.textToSpeech.convert('mee', { text: 'Who?' })
} catch (error) {
  results.error = { status: error.statusCode, code: error.body.detail.status }
}
try {
  await client.textToSpeech.convert('me', { text: '' })
} catch (error) {
  results.isUnprocessable = error instanceof ElevenLabs.UnprocessableEntityError
}

const vercel = createElevenLabs({
  apiKey,
  fetch: (url, options) => fetch(String(url).replace('https://api.elevenlabs.io', baseUrl), options),
})
const { audio } = await generateSpeech({ model: vercel.speech('eleven_multilingual_v2'), text: 'From the AI SDK.', voice: 'me' })
results.aiSdk = { mediaType: audio.mediaType, size: audio.uint8Array.length }
try {
  await generateSpeech({ model: vercel.speech('eleven_multilingual_v2'), text: 'Who?', voice: 'mee' })
} catch (error) {
  results.aiSdkError = error.message
}
console.log(JSON.stringify(results))

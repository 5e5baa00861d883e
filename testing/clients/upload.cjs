// Uploads with tus-js-client in Node: a JSON job on stdin, a JSON list of its uploads' ids, files and requests on stdout.
//   node upload.cjs MODULES <<<'{"client": …, "endpoint": …, "token": …, "uploads": [{"path": …, "metadata": …, "options": …}]}'
// An upload with "stream" is read from a stream of unknown length.
const { createRequire } = require('node:module')
const { createReadStream } = require('node:fs')
const { PassThrough } = require('node:stream')
const { text } = require('node:stream/consumers')

const requireClient = createRequire(`${process.argv[2]}/`)

function send({ client, endpoint, token }, { path, stream, metadata, options }) {
  const requests = []
  return new Promise((resolve, reject) => {
    const source = createReadStream(path)
    const upload = new client.Upload(stream ? source.pipe(new PassThrough()) : source, {
      endpoint,
      headers: { Authorization: `Bearer ${token}` },
      retryDelays: [100, 200, 400],
      metadata,
      ...options,
      onAfterResponse: (req, res) => {
        requests.push(`${req.getMethod()} ${res.getStatus()}`)
      },
      onError: reject,
      onSuccess: ({ lastResponse }) => resolve({ url: upload.url, file_id: lastResponse.getHeader('X-File-Id'), requests }),
    })
    upload.start()
  })
}

async function main() {
  // For an upload that never ends: Node exits when nothing is left to wait for.
  process.exitCode = 1
  const job = JSON.parse(await text(process.stdin))
  const client = requireClient(job.client)
  const done = []
  for (const upload of job.uploads) {
    done.push(await send({ ...job, client }, upload))
  }
  console.log(JSON.stringify(done))
  process.exitCode = 0
}

main()

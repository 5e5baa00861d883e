#!/usr/bin/env bash
# tus-js-client 4.3.1 begins an upload from byte 0 if a proxy answers the HEAD that should resume it with 502.
#
# With retryDelays it tries again after 5xx to POST and PATCH. But after any answer to HEAD except 2xx and 423 it makes a new
# upload immediately, and never uses what has arrived of the old one. A restart of the server in the middle of an upload
# ends so: the connection breaks, and the HEAD that follows meets the proxy's 502.
# Seen with tus-js-client 4.3.1:
#   POST 201
#   PATCH from 0: the connection breaks in the middle
#   HEAD 502
#   POST 201
#   PATCH from 0: 204
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --prefix "$folder" tus-js-client@4.3.1 2>"$folder/npm" || { cat "$folder/npm"; exit 2; }
cat >"$folder/seen.cjs" <<'JAVASCRIPT'
const { createServer } = require('node:http')
const { Upload } = require('tus-js-client')

const SIZE = 1000000
let requests = 0

const server = createServer((req, res) => {
  requests += 1
  const answer = (status, headers = {}) => res.writeHead(status, { 'Tus-Resumable': '1.0.0', ...headers }).end()
  if (req.method === 'POST') {
    console.log('POST 201')
    answer(201, { Location: `/${requests}` })
  } else if (req.method === 'HEAD') {
    console.log('HEAD 502')
    answer(502)
  } else {
    let received = 0
    req.on('data', (piece) => {
      received += piece.length
      if (requests === 2 && received >= SIZE / 2 && !req.destroyed) {
        console.log('PATCH from 0: the connection breaks in the middle')
        req.destroy()
      }
    })
    req.on('end', () => {
      console.log(`PATCH from ${req.headers['upload-offset']}: 204`)
      answer(204, { 'Upload-Offset': String(Number(req.headers['upload-offset']) + received) })
    })
  }
})

server.listen(0, '127.0.0.1', () => {
  const upload = new Upload(Buffer.alloc(SIZE), {
    endpoint: `http://127.0.0.1:${server.address().port}/`,
    retryDelays: [0, 100, 100],
    onError: (error) => console.log(String(error)),
    onSuccess: () => server.close(),
  })
  upload.start()
})
JAVASCRIPT
node "$folder/seen.cjs" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")

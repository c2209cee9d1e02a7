// Sends a burst of events with Segment's SDK for Node as it comes from npm, and prints what it made of them.
//
//     tracking.mjs URL COUNT [KEY]
//
// Prints {"ids": [...], "errors": [...]}: the id that the SDK gave to each event, and what it gave up on.

import { Analytics } from '@segment/analytics-node'

const [url, count] = [process.argv[2], Number(process.argv[3])]
const ids = []
const errors = []
const analytics = new Analytics({ writeKey: process.argv[4] ?? 'write-key', host: url, flushAt: 20, flushInterval: 200 })
analytics.on('error', (error) => errors.push(String(error.reason ?? error)))
const done = (error, ctx) => ids.push(ctx.event.messageId)

for (let n = 0; n < count; n++) {
  const userId = 'u1'
  switch (n % 10) {
    case 0: analytics.identify({ userId, traits: { n, plan: 'free' } }, done); break
    case 1: analytics.page({ userId, category: 'Docs', name: 'Index', properties: { n } }, done); break
    case 2: analytics.screen({ anonymousId: 'a1', name: 'Start', properties: { n } }, done); break
    case 3: analytics.group({ userId, groupId: 'g1', traits: { n } }, done); break
    case 4: analytics.alias({ userId, previousId: 'a1' }, done); break
    case 5: analytics.track({ anonymousId: 'a1', event: 'Shown – Ω', properties: { n }, timestamp: new Date() }, done); break
    default: analytics.track({ userId, event: 'Order Completed', properties: { n, total: 12.5, note: null } }, done)
  }
}
await analytics.closeAndFlush({ timeout: 50000 })
console.log(JSON.stringify({ ids, errors }))

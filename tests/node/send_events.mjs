// Sends CloudEvents with the CloudEvents SDK for JavaScript, each of them twice, through its own HTTP transport.
//
//     node send_events.mjs URL
//
// Prints a JSON line for every event: what was meant, and both answers.

import { CloudEvent, Mode, emitterFor, httpTransport } from "cloudevents";

const url = process.argv[2];
const events = [
  [{ type: "order.paid", source: "/shop" }, { order: { id: 117, total: "129.00" } }],
  [
    {
      type: "order.shipped",
      source: "https://shop.example/orders?x=1",
      subject: "two caf\u00e9s",
      time: "2026-11-22T14:00:00.250Z",
      comexample: "a \"quoted\" word",
      number: 7,
      flag: true,
    },
    { text: "na\u00efve \u{1f600}", list: [1, 0.1, null, true] },
  ],
  [{ type: "note.taken", source: "/notes", datacontenttype: "text/plain" }, "plain, \u00fcnd more"],
  [{ type: "image.taken", source: "/camera", datacontenttype: "image/png" }, new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0, 0xff])],
];

let number = 0;
for (const mode of [Mode.STRUCTURED, Mode.BINARY]) {
  const emit = emitterFor(httpTransport(url), { mode });
  for (const [attributes, data] of events) {
    number += 1;
    const event = new CloudEvent({ id: `${mode} #${number}`, ...attributes, data });
    const answers = [];
    for (let time = 0; time < 2; time += 1) {
      const answer = await emit(event);
      answers.push(JSON.parse(answer.body));
    }
    const bytes = data instanceof Uint8Array;
    const { data: _, data_base64: __, ...meant } = event.toJSON();
    console.log(JSON.stringify({
      attributes: meant,
      data: bytes ? null : data,
      data_base64: bytes ? Buffer.from(data).toString("base64") : null,
      answers,
    }));
  }
}

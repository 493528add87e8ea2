// Runs models for Python, which calls `answer` and is at the other end of every fetch. What belongs
// to a call lies below its number: a call that Python gave up goes on here, beside the next one.

import * as ort from "./ort.wasm.min.mjs";

const sessions = new Map(); // by number
const held = new Map(); // tensors that stay here between calls, of each session by number
let next = 0;

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array, // the bits
  int64: BigInt64Array,
  int32: Int32Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

const ALIGNED = 8; // bytes; tensors lie one after the other, each at a multiple of it

async function bytes(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response.arrayBuffer();
}

async function open({ call, threads, data }) {
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = new URL("./", location.href).href;
  ort.env.wasm.numThreads = crossOriginIsolated ? (threads ?? navigator.hardwareConcurrency) : 1;
  const externalData = data ? [{ path: data, data: new Uint8Array(await bytes(`${call}/${data}`)) }] : [];
  const model = new Uint8Array(await bytes(`${call}/model.onnx`));
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ["wasm"],
    externalData,
  });
  sessions.set(++next, session);
  held.set(next, new Map());
  return next;
}

function taken(inputs, buffer, tensors) {
  const feeds = {};
  let at = 0;
  for (const { name, dtype, shape, number } of inputs) {
    if (number !== undefined) {
      feeds[name] = tensors.get(number);
      continue;
    }
    const size = shape.reduce((product, axis) => product * axis, 1);
    const values = new ARRAYS[dtype](buffer, at, size);
    feeds[name] = new ort.Tensor(dtype, values, shape);
    at += Math.ceil(values.byteLength / ALIGNED) * ALIGNED;
  }
  return feeds;
}

async function send(call, tensors) {
  const facts = [];
  let size = 0;
  for (const [name, tensor] of tensors) {
    facts.push({ name, dtype: tensor.type, shape: [...tensor.dims], at: size });
    size += Math.ceil(tensor.data.byteLength / ALIGNED) * ALIGNED;
  }
  const body = new Uint8Array(size);
  tensors.forEach(([, { data }], index) => {
    body.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), facts[index].at);
  });
  const response = await fetch(`${call}/outputs`, { method: "POST", body });
  if (!response.ok) throw new Error(`outputs: ${response.status}`);
  return facts;
}

// inputs: facts of each, whose bytes are fetched in this order, or the number of one that is held.
// kept: names of outputs that stay here. dropped: numbers of those that are not needed any more.
async function run({ call, session, inputs, kept, dropped }) {
  const tensors = held.get(session);
  dropped.forEach((number) => tensors.delete(number));
  const feeds = taken(inputs, await bytes(`${call}/inputs`), tensors);
  const outputs = Object.entries(await sessions.get(session).run(feeds));
  const numbers = {};
  for (const [name, tensor] of outputs.filter(([name]) => kept.includes(name))) {
    tensors.set(++next, tensor);
    numbers[name] = next;
  }
  const others = outputs.filter(([name]) => !kept.includes(name));
  return { numbers, outputs: await send(call, others) };
}

async function give({ call, session, number }) {
  return { outputs: await send(call, [["", held.get(session).get(number)]]) };
}

async function release(session) {
  held.delete(session);
  await sessions.get(session).release();
  sessions.delete(session);
}

const ANSWERS = { open, run, give };

// released: numbers of sessions that are not needed any more.
globalThis.answer = async ({ to, released, ...request }) => {
  for (const session of released) await release(session);
  return ANSWERS[to](request);
};

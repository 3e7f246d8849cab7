// Runs a function that graph.py wrote as a list of operations.
//
//   const graph = await fm.graph(data, bytes);            // bytes: a Uint8Array, unpacked
//   const out = graph.run({ x, t, s, y, w }, B);          // at once, on this page
//   const out = await graph.ask({ x, t, s, y, w }, B);    // the same in Web Workers
//
// graph.inputs names what it needs. x holds B samples, one after the other, y labels: one for all or
// B of them. t, s and w are numbers, the same for all samples. The answer holds B samples too, as
// doubles for points and as floats for images. `ask` splits the samples among as many workers as
// there are processors (four at most), so that the page stays free; calls may overlap.
(function graphs(fm) {
  "use strict";
  (fm.sources ??= []).push(graphs.toString());
  const READ = { f32: Float32Array, f64: Float64Array, i32: Int32Array };
  const BYTES = { f16: 2, f32: 4, f64: 8, i32: 4 };
  const MOST = 4; // workers

  // ---- tensors ----------------------------------------------------------------------------------

  const halves = new Float64Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const [exponent, fraction] = [bits >> 10 & 31, bits & 1023];
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    halves[bits] = exponent === 31 ? NaN : bits & 0x8000 ? -size : size;
  }

  // A tensor whose numbers are stored byte by byte: their first bytes, their second ones, and so on.
  function tensor({ shape, type, storage, offset }, bytes) {
    const count = shape.reduce((a, b) => a * b, 1);
    const width = BYTES[storage];
    const whole = new Uint8Array(count * width);
    for (let b = 0; b < width; b++) {
      for (let i = 0; i < count; i++) whole[i * width + b] = bytes[offset + b * count + i];
    }
    const numbers = storage === "f16"
      ? Float64Array.from(new Uint16Array(whole.buffer), bits => halves[bits])
      : new READ[storage](whole.buffer);
    return { shape, type, data: READ[type].from(numbers) };
  }

  // ---- one run ----------------------------------------------------------------------------------

  const multiple = value => value !== null && typeof value === "object" && "B" in value;
  const sized = (shape, B) => shape.map(n => multiple(n) ? n.B * B : n);

  // The numbers of the values that an argument refers to.
  function references(arg) {
    if (Array.isArray(arg)) return arg.flatMap(references);
    return arg !== null && typeof arg === "object" && "v" in arg ? [arg.v] : [];
  }

  // A value that is the same for all samples, repeated for each.
  function repeated(value, shape, B) {
    const at = shape.findIndex(multiple);
    if (at < 0 || B === 1) return value;
    if (shape[at].B !== 1) throw new Error("a value of several rows a sample cannot be repeated");
    const full = { type: value.type, shape: sized(shape, B) };
    const data = fm.ops.expand({ ...full }, value);
    return { ...full, data };
  }

  function input({ name, shape, type }, value, B) {
    if (value === undefined) throw new Error(`the input ${name} is missing`);
    const same = typeof value === "number";
    const full = sized(shape, same ? 1 : B);
    const data = same ? READ[type].of(value) : READ[type].from(value);
    const count = full.reduce((a, b) => a * b, 1);
    if (data.length !== count) {
      throw new Error(`the input ${name} has ${data.length} numbers, and ${count} are needed`);
    }
    return { type, shape: full, data, same };
  }

  function runner(data, tensors) {
    const first = tensors.length + data.inputs.length;
    const forms = [...data.tensors, ...data.inputs, ...data.ops];
    const uses = data.ops.map(o => references(o.args));
    const last = new Map(); // value: the operation after which it is not needed
    uses.forEach((list, i) => list.forEach(v => last.set(v, i)));

    return (inputs, B) => {
      const values = [...tensors, ...data.inputs.map(form => input(form, inputs[form.name], B))];
      data.ops.forEach(({ op, args, shape, type }, i) => {
        const same = uses[i].every(v => values[v].same);
        const rows = same ? 1 : B;
        const { broadcasts } = fm.ops[op];
        const read = arg => {
          if (Array.isArray(arg)) return arg.map(read);
          if (arg === null || typeof arg !== "object") return arg;
          if ("B" in arg) return arg.B * rows;
          if ("sign" in arg) return arg.sign * Infinity;
          const value = values[arg.v];
          const alone = same || broadcasts || !value.same;
          return alone ? value : repeated(value, forms[arg.v].shape, B);
        };
        const form = { shape: sized(shape, rows), type };
        const result = fm.ops[op](form, ...args.map(read));
        values.push(Array.isArray(result)
          ? Object.assign(result, { same }) : { ...form, data: result, same });
        for (const v of uses[i]) if (v >= first && last.get(v) === i) values[v] = null;
      });
      const out = values[data.output];
      return out.same ? repeated(out, forms[data.output].shape, B).data : out.data;
    };
  }

  // ---- workers ----------------------------------------------------------------------------------

  // The code of a worker: the same files, and a list of graphs by number.
  const serve = function () {
    const graphs = {};
    self.onmessage = async ({ data: { id, make, graph, inputs, B } }) => {
      if (make) {
        graphs[graph] = fm.graph(make.data, make.bytes);
        return;
      }
      try {
        const out = (await graphs[graph]).run(inputs, B);
        self.postMessage({ id, out }, [out.buffer]);
      } catch (error) {
        self.postMessage({ id, error: String(error) });
      }
    };
  };

  let pool = null;
  const waiting = new Map();
  let questions = 0;
  function workers() {
    if (pool) return pool;
    const code = `"use strict"; const fm = {};\n${fm.sources.map(s => `(${s})(fm);`).join("\n")}
      (${serve})();`;
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    pool = Array.from({ length: Math.min(navigator.hardwareConcurrency || 1, MOST) }, () => {
      const worker = new Worker(url);
      worker.onmessage = ({ data: { id, out, error } }) => {
        const [resolve, reject] = waiting.get(id);
        waiting.delete(id);
        if (error) reject(new Error(error));
        else resolve(out);
      };
      return worker;
    });
    return pool;
  }

  function question(worker, message) {
    return new Promise((resolve, reject) => {
      waiting.set(questions, [resolve, reject]);
      worker.postMessage({ ...message, id: questions++ });
    });
  }

  let count = 0;
  fm.graph = async (data, bytes) => {
    const tensors = data.tensors.map(form => ({ ...tensor(form, bytes), same: true }));
    const run = runner(data, tensors);
    const number = count++;
    let sent = false;

    async function ask(inputs, B) {
      const all = workers();
      if (!sent) all.forEach(w => w.postMessage({ graph: number, make: { data, bytes } }));
      sent = true;
      const share = Math.ceil(B / all.length);
      const answers = [];
      for (let from = 0; from < B; from += share) {
        const rows = Math.min(share, B - from);
        const part = Object.fromEntries(data.inputs.map(({ name }) => {
          const value = inputs[name];
          if (value === undefined || typeof value === "number") return [name, value];
          const width = value.length / B;
          return [name, value.slice(from * width, (from + rows) * width)];
        }));
        answers.push(question(all[answers.length], { graph: number, inputs: part, B: rows }));
      }
      const parts = await Promise.all(answers);
      const out = new parts[0].constructor(parts.reduce((n, p) => n + p.length, 0));
      let to = 0;
      for (const p of parts) {
        out.set(p, to);
        to += p.length;
      }
      return out;
    }
    return { inputs: data.inputs.map(({ name }) => name), run, ask };
  };
})(fm);

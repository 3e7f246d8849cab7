// The operations that graph.js runs, under the names of PyTorch. Each gets the form of its result
// { shape, type } and PyTorch's arguments in order: tensors { data, shape, type }, numbers, lists.
// It returns the numbers of the result, or a list of tensors. Tensors are contiguous.
(function ops(fm) {
  "use strict";
  (fm.sources ??= []).push(ops.toString());
  const ARRAYS = { f64: Float64Array, f32: Float32Array, i32: Int32Array };
  fm.ops = {};
  const op = (name, run) => { fm.ops[name] = run; };
  const size = shape => shape.reduce((a, b) => a * b, 1);
  const axis = (dim, shape) => dim < 0 ? dim + shape.length : dim;
  fm.empty = form => new ARRAYS[form.type](size(form.shape));

  // The steps in memory of a tensor of this shape, one for each dimension.
  function steps(shape) {
    const by = Array(shape.length).fill(1);
    for (let i = shape.length - 2; i >= 0; i--) by[i] = by[i + 1] * shape[i + 1];
    return by;
  }

  // Calls visit(to, at) for each run along the last of the merged dimensions, where `at` holds the
  // places of the operands. Returns the length of a run and the steps of the operands along it.
  function walk(shape, operands) {
    const sizes = [];
    const by = [];
    shape.forEach((n, i) => {
      const here = operands.map(o => o[i]);
      if (n === 1) return;
      const last = by.at(-1);
      if (last && here.every((s, j) => last[j] === s * n)) {
        sizes[sizes.length - 1] *= n;
        by[by.length - 1] = here;
      } else {
        sizes.push(n);
        by.push(here);
      }
    });
    const length = sizes.pop() ?? 1;
    const along = by.pop() ?? operands.map(() => 0);
    return {
      length,
      along,
      each(visit) {
        const total = size(sizes);
        const index = sizes.map(() => 0);
        const at = operands.map(() => 0);
        for (let run = 0; run < total; run++) {
          visit(run * length, at);
          for (let i = sizes.length - 1; i >= 0; i--) {
            const back = ++index[i] === sizes[i] ? index[i] : 0;
            if (back) index[i] = 0;
            for (let j = 0; j < at.length; j++) at[j] += by[i][j] * (back ? 1 - back : 1);
            if (!back) break;
          }
        }
      },
    };
  }

  // The numbers of x from `first` on, by these steps along the dimensions of the result.
  function strided(form, x, first, by) {
    const out = fm.empty(form);
    const { length, along: [step], each } = walk(form.shape, [by]);
    const data = x.data;
    each((to, [at]) => {
      for (let i = 0, from = first + at; i < length; i++, from += step) out[to + i] = data[from];
    });
    return out;
  }

  // ---- numbers, each for itself ---------------------------------------------------------------

  function spread(shape, x) {
    if (typeof x === "number") return Array(shape.length).fill(0);
    const lack = shape.length - x.shape.length;
    const by = steps(x.shape);
    return shape.map((n, i) => i < lack || x.shape[i - lack] === 1 ? 0 : by[i - lack]);
  }

  // f of numbers and tensors that broadcast.
  function map(form, f, ...args) {
    const out = fm.empty(form);
    const [a, b, c] = args.map(arg => typeof arg === "number" ? Float64Array.of(arg) : arg.data);
    const { length, along, each } = walk(form.shape, args.map(arg => spread(form.shape, arg)));
    const [da, db, dc] = along;
    if (args.length === 1) {
      each((to, [p]) => {
        for (let i = 0; i < length; i++) out[to + i] = f(a[p + i * da]);
      });
    } else if (args.length === 2) {
      each((to, [p, q]) => {
        for (let i = 0; i < length; i++) out[to + i] = f(a[p + i * da], b[q + i * db]);
      });
    } else {
      each((to, [p, q, r]) => {
        for (let i = 0; i < length; i++) {
          out[to + i] = f(a[p + i * da], b[q + i * db], c[r + i * dc]);
        }
      });
    }
    return out;
  }
  const broadcasting = run => Object.assign(run, { broadcasts: true });
  const of = f => broadcasting((form, ...args) => map(form, f, ...args));
  // the same for an operation with a number after its tensors, which f takes first
  const withNumbers = (count, f) => broadcasting((form, ...args) =>
    map(form, f(...args.slice(count)), ...args.slice(0, count)));

  op("neg", of(a => -a));
  op("abs", of(Math.abs));
  op("sqrt", of(Math.sqrt));
  op("rsqrt", of(a => 1 / Math.sqrt(a)));
  op("reciprocal", of(a => 1 / a));
  op("exp", of(Math.exp));
  op("expm1", of(Math.expm1));
  op("log", of(Math.log));
  op("log1p", of(Math.log1p));
  op("sin", of(Math.sin));
  op("cos", of(Math.cos));
  op("tan", of(Math.tan));
  op("tanh", of(Math.tanh));
  op("atan", of(Math.atan));
  op("floor", of(Math.floor));
  op("sign", of(Math.sign));
  op("relu", of(a => Math.max(a, 0)));
  op("sigmoid", of(a => 1 / (1 + Math.exp(-a))));
  op("silu", (form, x) => fm.kernels.silu(fm.empty(form), x.data));
  op("selu", of(a => 1.0507009873554805 * (a > 0 ? a : 1.6732632423543772 * Math.expm1(a))));
  op("gelu", (form, x, kind) => {
    if (kind !== "tanh") throw new Error(`gelu of the kind ${kind} is unknown`);
    return fm.kernels.gelu(fm.empty(form), x.data);
  });
  op("add", withNumbers(2, (k = 1) => (a, b) => a + k * b));
  op("sub", withNumbers(2, (k = 1) => (a, b) => a - k * b));
  op("rsub", withNumbers(2, (k = 1) => (a, b) => b - k * a));
  op("mul", of((a, b) => a * b));
  op("div", of((a, b) => a / b));
  op("pow", of(Math.pow));
  op("maximum", of(Math.max));
  op("minimum", of(Math.min));
  op("addcmul", withNumbers(3, (k = 1) => (a, b, c) => a + k * b * c));
  op("lerp", of((a, b, c) => a + c * (b - a)));
  op("where", of((a, b, c) => a ? b : c));
  op("masked_fill", of((a, b, c) => b ? c : a));
  op("clamp", withNumbers(1, (lo, hi) => a => Math.min(Math.max(a, lo ?? -Infinity), hi ?? Infinity)));
  op("eq", of((a, b) => a === b ? 1 : 0));
  op("ne", of((a, b) => a !== b ? 1 : 0));
  op("lt", of((a, b) => a < b ? 1 : 0));
  op("le", of((a, b) => a <= b ? 1 : 0));
  op("gt", of((a, b) => a > b ? 1 : 0));
  op("ge", of((a, b) => a >= b ? 1 : 0));
  op("bitwise_and", of((a, b) => a & b));
  op("bitwise_or", of((a, b) => a | b));
  op("__and__", of((a, b) => a & b));
  op("__or__", of((a, b) => a | b));
  op("logical_and", of((a, b) => a && b ? 1 : 0));
  op("bitwise_not", of(a => a ? 0 : 1));
  op("to", (form, x) => x.type === form.type ? x.data : map(form, a => a, x));
  op("zeros", form => fm.empty(form));
  op("zeros_like", form => fm.empty(form));
  op("new_zeros", form => fm.empty(form));
  op("ones", form => fm.empty(form).fill(1));
  op("ones_like", form => fm.empty(form).fill(1));
  op("full", (form, shape, value) => fm.empty(form).fill(value));
  op("full_like", (form, x, value) => fm.empty(form).fill(value));

  // ---- places -----------------------------------------------------------------------------------

  const view = (form, x) => x.data;
  op("reshape", view);
  op("view", view);
  op("view_as", view);
  op("unsqueeze", view);
  op("squeeze", view);
  op("flatten", view);
  op("unflatten", view);
  op("expand", withNumbers(1, () => a => a));
  op("getitem", (form, tensors, i) => tensors[i].data);

  function swapped(form, x, p, q) {
    const by = steps(x.shape);
    const [i, j] = [axis(p, x.shape), axis(q, x.shape)];
    [by[i], by[j]] = [by[j], by[i]];
    return strided(form, x, 0, by);
  }
  op("transpose", swapped);
  op("mT", (form, x) => swapped(form, x, -2, -1));
  op("t", (form, x) => swapped(form, x, 0, -1));
  op("numpy_T", (form, x) => swapped(form, x, 0, -1)); // of a matrix
  op("permute", (form, x, dims) => {
    const by = steps(x.shape);
    return strided(form, x, 0, dims.map(d => by[axis(d, x.shape)]));
  });

  // The numbers first ... last - 1 along one dimension.
  function part(x, dim, first, last) {
    const shape = x.shape.map((n, i) => i === dim ? last - first : n);
    const by = steps(x.shape);
    const form = { shape, type: x.type };
    return { ...form, data: strided(form, x, first * by[dim], by) };
  }
  op("slice", (form, x, dim, start, end, step) => {
    if (step !== 1) throw new Error("a slice with steps is unknown");
    const [d, from] = [axis(dim, x.shape), start ?? 0];
    const first = from < 0 ? from + x.shape[axis(dim, x.shape)] : from;
    return part(x, d, first, first + form.shape[d]).data;
  });
  op("select", (form, x, dim, i) => {
    const d = axis(dim, x.shape);
    const first = i < 0 ? i + x.shape[d] : i;
    return part(x, d, first, first + 1).data;
  });
  op("unbind", (form, x, dim) => {
    const d = axis(dim, x.shape);
    return Array.from({ length: x.shape[d] }, (_, i) => part(x, d, i, i + 1));
  });
  op("chunk", (form, x, count, dim) => {
    const d = axis(dim, x.shape);
    const n = Math.ceil(x.shape[d] / count);
    const parts = [];
    for (let i = 0; i < x.shape[d]; i += n) parts.push(part(x, d, i, Math.min(i + n, x.shape[d])));
    return parts;
  });

  function cat(form, tensors, dim) {
    const out = fm.empty(form);
    const d = axis(dim, form.shape);
    const inner = size(form.shape.slice(d + 1));
    const outer = size(form.shape.slice(0, d));
    let to = 0;
    for (const { data, shape } of tensors) {
      const n = shape[d] * inner;
      for (let i = 0; i < outer; i++) {
        out.set(data.subarray(i * n, (i + 1) * n), i * form.shape[d] * inner + to);
      }
      to += n;
    }
    return out;
  }
  op("cat", cat);
  op("stack", (form, tensors, dim) => {
    const d = axis(dim, form.shape);
    const one = x => ({ ...x, shape: x.shape.toSpliced(d, 0, 1) });
    return cat(form, tensors.map(one), d);
  });
  op("embedding", (form, table, rows) => {
    const width = table.shape[1];
    const out = fm.empty(form);
    rows.data.forEach((row, i) => {
      out.set(table.data.subarray(row * width, (row + 1) * width), i * width);
    });
    return out;
  });
  op("pixel_unshuffle", (form, x, r) => {
    const [B, C, H, W] = x.shape;
    const shape = [B, C, r, r, H / r, W / r];
    const by = [C * H * W, H * W, W, 1, r * W, r];
    return strided({ shape, type: form.type }, x, 0, by);
  });
  op("pixel_shuffle", (form, x, r) => {
    const [B, C, H, W] = x.shape;
    const c = C / r / r;
    const shape = [B, c, H, r, W, r];
    const by = [C * H * W, r * r * H * W, W, r * H * W, 1, H * W];
    return strided({ shape, type: form.type }, x, 0, by);
  });
  op("upsample_nearest2d", (form, x) => {
    const [B, C, H, W] = x.shape;
    const [p, q] = [form.shape[2] / H, form.shape[3] / W];
    const shape = [B, C, H, p, W, q];
    return strided({ shape, type: form.type }, x, 0, [C * H * W, H * W, W, 0, 1, 0]);
  });
  op("avg_pool2d", (form, x, [p, q]) => {
    const [, , H, W] = x.shape;
    const [B, C, h, w] = form.shape;
    const out = fm.empty(form);
    for (let i = 0; i < out.length; i++) {
      const [plane, y, z] = [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w];
      let sum = 0;
      for (let u = 0; u < p * q; u++) {
        sum += x.data[(plane * H + y * p + Math.floor(u / q)) * W + z * q + u % q];
      }
      out[i] = sum / (p * q);
    }
    return out;
  });

  // ---- sums -------------------------------------------------------------------------------------

  // `begin`, changed by take(result, number) for each number along the dimensions, in doubles.
  function reduce(form, x, dims, begin, take) {
    const out = new Float64Array(size(form.shape)).fill(begin);
    const over = new Set(dims.map(d => axis(d, x.shape)));
    const left = x.shape.map((n, i) => over.has(i) ? 1 : n);
    const by = steps(left).map((s, i) => over.has(i) ? 0 : s);
    const { length, along: [step], each } = walk(x.shape, [by]);
    each((from, [at]) => {
      for (let i = 0, to = at; i < length; i++, to += step) {
        out[to] = take(out[to], x.data[from + i]);
      }
    });
    return out;
  }
  const all = (x, dims) => dims?.length ? dims : x.shape.map((_, i) => i);
  op("sum", (form, x, dims) => {
    return ARRAYS[form.type].from(reduce(form, x, all(x, dims), 0, (a, b) => a + b));
  });
  op("mean", (form, x, dims) => {
    const count = size(all(x, dims).map(d => x.shape[axis(d, x.shape)]));
    return ARRAYS[form.type].from(reduce(form, x, all(x, dims), 0, (a, b) => a + b / count));
  });
  op("softmax", (form, x, dim) => {
    if (axis(dim, x.shape) !== x.shape.length - 1) throw new Error("softmax has no other dimension");
    const m = x.shape.at(-1);
    return fm.kernels.softmax(x.data.slice(), x.data.length / m, m);
  });

  // Two tensors by PyTorch's equation: the sum over all letters that the result lacks.
  op("einsum", (form, equation, [a, b]) => {
    const [left, right] = equation.split("->");
    const [p, q] = left.split(",");
    const letters = [...new Set(right + p + q)];
    const length = Object.fromEntries([...p].map((l, i) => [l, a.shape[i]]));
    [...q].forEach((l, i) => { length[l] = b.shape[i]; });
    const along = (word, shape) => letters.map(l => steps(shape)[word.indexOf(l)] ?? 0);
    const shape = letters.map(l => length[l]);
    const out = new Float64Array(size(form.shape));
    const operands = [along(right, form.shape), along(p, a.shape), along(q, b.shape)];
    const { length: n, along: [s, u, v], each } = walk(shape, operands);
    each((_, [to, i, j]) => {
      for (let k = 0; k < n; k++) out[to + k * s] += a.data[i + k * u] * b.data[j + k * v];
    });
    return ARRAYS[form.type].from(out);
  });
  op("matmul", (form, a, b) => {
    if (b.shape.length !== 2) throw new Error("matmul is of rows and a matrix");
    const [k, n] = b.shape;
    const out = fm.empty(form);
    for (let i = 0; i < out.length / n; i++) {
      for (let p = 0; p < k; p++) {
        const factor = a.data[i * k + p];
        for (let j = 0; j < n; j++) out[i * n + j] += factor * b.data[p * n + j];
      }
    }
    return out;
  });

  // ---- layers: see kernels.js -------------------------------------------------------------------

  op("linear", (form, x, weight, bias) => {
    const [m, k] = weight.shape;
    const n = x.data.length / k;
    return fm.kernels.linear(fm.empty(form), x.data, weight.data, bias?.data, n, m, k);
  });
  op("conv2d", (form, x, weight, bias, stride, pad, dilation, groups) => {
    if (groups !== 1 || dilation.some(d => d !== 1)) {
      throw new Error("a convolution with groups or holes is unknown");
    }
    const two = sizes => sizes.length === 1 ? [sizes[0], sizes[0]] : sizes;
    return fm.kernels.conv2d(fm.empty(form), x.data, weight.data, bias?.data, x.shape, weight.shape,
      two(stride), two(pad), form.shape.slice(2));
  });
  op("scaled_dot_product_attention", (form, q, k, v, mask, dropout, causal, scale) => {
    if (mask || causal) throw new Error("attention with a mask is unknown");
    const [T, d] = q.shape.slice(-2);
    const [S, e] = v.shape.slice(-2);
    const sizes = [size(q.shape.slice(0, -2)), T, S, d, e];
    return fm.kernels.attention(fm.empty(form), q.data, k.data, v.data, sizes, scale ?? d ** -0.5);
  });

  // out = out weight + bias, where number i of out has the channel floor(i / inner) % channels
  function affine(out, weight, bias, channels, inner) {
    for (let from = 0, c = 0; from < out.length; from += inner, c = (c + 1) % channels) {
      const [a, b] = [weight ? weight.data[c] : 1, bias ? bias.data[c] : 0];
      for (let i = from; i < from + inner; i++) out[i] = out[i] * a + b;
    }
    return out;
  }
  op("group_norm", (form, x, groups, weight, bias, eps) => {
    const [B, C] = x.shape;
    const n = B * groups;
    const out = fm.kernels.normal(fm.empty(form), x.data, n, x.data.length / n, eps, true);
    return affine(out, weight, bias, C, x.data.length / (B * C));
  });
  op("layer_norm", (form, x, shape, weight, bias, eps) => {
    const m = size(shape);
    const out = fm.kernels.normal(fm.empty(form), x.data, x.data.length / m, m, eps, true);
    return weight || bias ? affine(out, weight, bias, m, 1) : out;
  });
  op("rms_norm", (form, x, shape, weight, eps) => {
    const m = size(shape);
    const out = fm.kernels.normal(fm.empty(form), x.data, x.data.length / m, m, eps, false);
    return weight ? affine(out, weight, null, m, 1) : out;
  });
})(fm);

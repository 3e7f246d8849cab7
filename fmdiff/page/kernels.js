// The operations of graph.js that cost time: products of matrices, convolutions, attention, norms.
// Products run in WebAssembly, four rows by 32 bytes of columns at once, in floats or doubles.
(function kernels(fm) {
  "use strict";
  (fm.sources ??= []).push(kernels.toString());
  fm.kernels = {};

  // ---- the WebAssembly module -------------------------------------------------------------------
  // product(a, p, t, m, k): t (m, 32 bytes) = a (m / 4, k, 4) p (k, 32 bytes), at addresses a, p, t

  const VECTOR = 0xfd;
  const FLOAT = { load: 0x09, add: 0xe4, mul: 0xe6, bytes: 4 };
  const DOUBLE = { load: 0x0a, add: 0xf0, mul: 0xf2, bytes: 8 };

  function leb(number) {
    const bytes = [];
    for (; number > 127; number >>>= 7) bytes.push(number & 127 | 128);
    return [...bytes, number];
  }
  const section = (id, ...content) => [id, ...leb(content.flat().length), ...content.flat()];
  const text = word => [word.length, ...[...word].map(c => c.charCodeAt(0))];

  // The body of the product for one type of numbers. Locals: the five parameters, the address in p,
  // the rest of k, two vectors of p, one number of a in all lanes, and eight sums.
  function body({ load, add, mul, bytes }) {
    const [A, P, T, M, K, AT, LEFT, B0, B1, S, SUM] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    const get = i => [0x20, i];
    const set = i => [0x21, i];
    const align = Math.log2(bytes);
    const plus = (i, by) => [...get(i), 0x41, ...leb(by), 0x6a, ...set(i)];
    const minus = (i, by) => [...get(i), 0x41, by, 0x6b, 0x22, i];
    const code = [0x03, 0x40, ...get(P), ...set(AT), ...get(K), ...set(LEFT)]; // loop over rows
    for (let i = 0; i < 8; i++) code.push(VECTOR, 0x0c, ...Array(16).fill(0), ...set(SUM + i));
    code.push(0x03, 0x40); // loop over k
    code.push(...get(AT), VECTOR, 0x00, 4, 0, ...set(B0), ...get(AT), VECTOR, 0x00, 4, 16);
    code.push(...set(B1));
    for (let row = 0; row < 4; row++) {
      code.push(...get(A), VECTOR, load, align, row * bytes, ...set(S));
      for (const half of [0, 1]) {
        const sum = SUM + 2 * row + half;
        code.push(...get(sum), ...get(S), ...get(half ? B1 : B0), VECTOR, mul, 1);
        code.push(VECTOR, add, 1, ...set(sum));
      }
    }
    code.push(...plus(A, 4 * bytes), ...plus(AT, 32), ...minus(LEFT, 1), 0x0d, 0, 0x0b);
    for (let i = 0; i < 8; i++) {
      code.push(...get(T), ...get(SUM + i), VECTOR, 0x0b, 4, ...leb(16 * i));
    }
    code.push(...plus(T, 128), ...minus(M, 4), 0x0d, 0, 0x0b, 0x0b);
    const locals = [2, 2, 0x7f, 11, 0x7b]; // two of i32, eleven of v128
    return [...leb(locals.length + code.length), ...locals, ...code];
  }

  function compile() {
    const memory = new WebAssembly.Memory({ initial: 16 });
    const bytes = new Uint8Array([
      0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
      ...section(1, [1, 0x60, 5, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0]),
      ...section(2, [1], text("m"), text("m"), [2, 0, 1]),
      ...section(3, [2, 0, 0]),
      ...section(7, [2], text("f32"), [0, 0], text("f64"), [0, 1]),
      ...section(10, [2], body(FLOAT), body(DOUBLE)),
    ]);
    const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), { m: { m: memory } });
    return { memory, products: instance.exports };
  }
  let engine = null;

  // The rows of a matrix (m, k) in blocks of four, padded by zeros; at(i) is where row i begins.
  function blocks(data, m, k, at = i => i * k, step = 1) {
    const packed = new data.constructor(Math.ceil(m / 4) * 4 * k);
    for (let i = 0; i < m; i++) {
      const from = at(i);
      const to = (i >> 2) * 4 * k + (i & 3);
      for (let p = 0; p < k; p++) packed[to + 4 * p] = data[from + p * step];
    }
    return packed;
  }

  const packs = new WeakMap();
  function weights(data, m, k) {
    if (!packs.has(data)) packs.set(data, blocks(data, m, k));
    return packs.get(data);
  }

  // The product of packed rows (m, k) and a matrix (k, n), by panels of its columns: fill(panel, j,
  // count, width) writes `count` columns from j on, and take(tile, j, count, width) reads theirs.
  function product(packed, k, n, fill, take) {
    engine ??= compile();
    const { memory, products } = engine;
    const size = packed.BYTES_PER_ELEMENT;
    const width = 32 / size;
    const rows = packed.length / k;
    const panelAt = Math.ceil(packed.byteLength / 16) * 16;
    const tileAt = panelAt + 32 * k;
    const lack = tileAt + 32 * rows - memory.buffer.byteLength;
    if (lack > 0) memory.grow(Math.ceil(lack / 65536));
    const View = packed.constructor;
    new View(memory.buffer, 0, packed.length).set(packed);
    const panel = new View(memory.buffer, panelAt, width * k);
    const tile = new View(memory.buffer, tileAt, width * rows);
    const run = size === 4 ? products.f32 : products.f64;
    for (let j = 0; j < n; j += width) {
      const count = Math.min(width, n - j);
      fill(panel, j, count, width);
      run(0, panelAt, tileAt, rows, k);
      take(tile, j, count, width);
    }
  }

  // x (n, k) W^T + b, for W (m, k): out (n, m).
  fm.kernels.linear = (out, x, weight, bias, n, m, k) => {
    const fill = (panel, j, count, width) => {
      for (let q = 0; q < count; q++) {
        for (let p = 0, from = (j + q) * k; p < k; p++) panel[p * width + q] = x[from + p];
      }
    };
    const take = (tile, j, count, width) => {
      for (let q = 0; q < count; q++) {
        const to = (j + q) * m;
        for (let i = 0; i < m; i++) out[to + i] = tile[i * width + q] + (bias ? bias[i] : 0);
      }
    };
    product(weights(weight, m, k), k, n, fill, take);
    return out;
  };

  // The convolution of images (B, C, H, W) with kernels (M, C, kh, kw): out (B, M, OH, OW).
  fm.kernels.conv2d = (out, x, weight, bias, shape, kernel, stride, pad, [OH, OW]) => {
    const [B, C, H, W] = shape;
    const [M, , kh, kw] = kernel;
    const [wide, high] = [W + 2 * pad[1], H + 2 * pad[0]];
    const padded = new x.constructor(C * high * wide);
    const base = new Int32Array(OH * OW);
    for (let i = 0; i < OH * OW; i++) {
      base[i] = Math.floor(i / OW) * stride[0] * wide + i % OW * stride[1];
    }
    const k = C * kh * kw;
    const packed = weights(weight, M, k);
    for (let b = 0; b < B; b++) {
      for (let r = 0; r < C * H; r++) {
        const row = x.subarray((b * C * H + r) * W, (b * C * H + r + 1) * W);
        padded.set(row, (Math.floor(r / H) * high + r % H + pad[0]) * wide + pad[1]);
      }
      const fill = (panel, j, count, width) => {
        let to = 0;
        for (let c = 0; c < C; c++) {
          for (let y = 0; y < kh; y++) {
            const row = (c * high + y) * wide;
            for (let z = row; z < row + kw; z++, to += width) {
              for (let q = 0; q < count; q++) panel[to + q] = padded[base[j + q] + z];
            }
          }
        }
      };
      const first = b * M * OH * OW;
      const take = (tile, j, count, width) => {
        for (let i = 0; i < M; i++) {
          const to = first + i * OH * OW + j;
          const shift = bias ? bias[i] : 0;
          for (let q = 0; q < count; q++) out[to + q] = tile[i * width + q] + shift;
        }
      };
      product(packed, k, OH * OW, fill, take);
    }
    return out;
  };

  // softmax(scale Q K^T) V for queries (G, T, d), keys (G, S, d) and values (G, S, e).
  fm.kernels.attention = (out, q, k, v, [G, T, S, d, e], scale) => {
    const shares = new q.constructor(T * S);
    for (let g = 0; g < G; g++) {
      const keys = blocks(k.subarray(g * S * d, (g + 1) * S * d), S, d);
      const ask = (panel, j, count, width) => {
        for (let c = 0; c < count; c++) {
          const from = (g * T + j + c) * d;
          for (let p = 0; p < d; p++) panel[p * width + c] = scale * q[from + p];
        }
      };
      const score = (tile, j, count, width) => {
        for (let c = 0; c < count; c++) {
          for (let i = 0; i < S; i++) shares[(j + c) * S + i] = tile[i * width + c];
        }
      };
      product(keys, d, T, ask, score);
      fm.kernels.softmax(shares, T, S);
      const values = blocks(v.subarray(g * S * e, (g + 1) * S * e), e, S, i => i, e);
      const share = (panel, j, count, width) => {
        for (let c = 0; c < count; c++) {
          for (let p = 0; p < S; p++) panel[p * width + c] = shares[(j + c) * S + p];
        }
      };
      const mix = (tile, j, count, width) => {
        for (let c = 0; c < count; c++) {
          const to = (g * T + j + c) * e;
          for (let i = 0; i < e; i++) out[to + i] = tile[i * width + c];
        }
      };
      product(values, S, T, share, mix);
    }
    return out;
  };

  // Two activations. A loop of their own is three times as fast as one that calls a function.
  fm.kernels.silu = (out, x) => {
    for (let i = 0; i < x.length; i++) out[i] = x[i] / (1 + Math.exp(-x[i]));
    return out;
  };
  fm.kernels.gelu = (out, x) => {
    const c = Math.sqrt(8 / Math.PI); // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
    for (let i = 0; i < x.length; i++) {
      out[i] = x[i] / (1 + Math.exp(-c * x[i] * (1 + 0.044715 * x[i] * x[i])));
    }
    return out;
  };

  // The softmax of each row of x (n, m), in place.
  fm.kernels.softmax = (x, n, m) => {
    for (let from = 0; from < n * m; from += m) {
      let top = -Infinity;
      for (let i = from; i < from + m; i++) if (x[i] > top) top = x[i];
      let sum = 0;
      for (let i = from; i < from + m; i++) sum += x[i] = Math.exp(x[i] - top);
      for (let i = from; i < from + m; i++) x[i] /= sum;
    }
    return x;
  };

  // Each row of x (n, m), less its mean if `centred`, over its root mean square.
  fm.kernels.normal = (out, x, n, m, eps, centred) => {
    for (let from = 0; from < n * m; from += m) {
      let mean = 0;
      if (centred) for (let i = from; i < from + m; i++) mean += x[i] / m;
      let square = 0;
      for (let i = from; i < from + m; i++) square += (x[i] - mean) * (x[i] - mean);
      const scale = 1 / Math.sqrt(square / m + eps);
      for (let i = from; i < from + m; i++) out[i] = (x[i] - mean) * scale;
    }
    return out;
  };
})(fm);

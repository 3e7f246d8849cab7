// Runs a sampling that program.py recorded: sums of rows, and questions to the field.
(() => {
  "use strict";

  function total(row, values) {
    const sum = new Float64Array(values[0].length);
    for (let k = 0; k < row.length; k += 2) {
      const value = values[row[k]];
      const c = row[k + 1];
      for (let i = 0; i < sum.length; i++) sum[i] += c * value[i];
    }
    return sum;
  }

  // ask(x, t, kind, s) gives the answers of the field, or a promise of them, for states x of any
  // number of samples, one after the other. s is undefined for a velocity at t.
  fm.program = (data, ask) => {
    const states = data.items.filter((item) => item.size !== undefined);
    let values = [];

    const run = {
      times: states.map((item) => item.t),
      steps: states.length - 1,
      done: 0, // the number of steps so far

      // The states at the first time, from standard normal numbers. Without a scale they are more.
      from(eps) {
        const x = Float64Array.from(eps, (z) => data.scale * z);
        const { shift } = data;
        if (shift) for (let i = 0; i < x.length; i++) x[i] += shift[i % shift.length];
        return x;
      },

      // Begins with these states at the first time; returns them at the scale of the data.
      start(x) {
        values = [x];
        run.done = 0;
        return total([0, states[0].size], values);
      },

      // Takes a step; normal(n) draws n standard normal numbers. Returns the samples at the scale
      // of the data.
      async step(normal) {
        for (;;) {
          const item = data.items[values.length];
          if (item.row === undefined) {
            values.push(normal(values[0].length));
            continue;
          }
          const x = total(item.row, values);
          const asks = item.size === undefined;
          values.push(asks ? await ask(x, item.t, data.kind, item.s) : x);
          if (!asks) {
            run.done += 1;
            return total([values.length - 1, item.size], values);
          }
        }
      },

      // The estimates of the data so far, each with its time.
      estimates() {
        const ready = data.estimates.filter(({ row }) => Math.max(...row.filter(even)) < values.length);
        return ready.map(({ t, row }) => ({ t, x: total(row, values) }));
      },
    };
    return run;
  };

  const even = (_, i) => i % 2 === 0;
})();

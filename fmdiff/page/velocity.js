"use strict";
// Velocities u(x, t) of many points at once, and Runge-Kutta steps along them.
(() => {
  // The function (x, t) -> u for x of B points, one after the other (Float64Array).
  //   { matrix }    theta times a matrix, where theta() is asked each time
  //   { formulas }  functions of the coordinates and t
  //   { graph, more }  a graph from Python; more() gives its inputs beside x and t
  fm.velocity = ({ matrix, theta, formulas, graph, more }) => {
    if (graph) return (x, t) => graph.run({ x, t, ...more(t) }, x.length / 2);
    const d = (matrix ?? formulas).length;
    return (x, t) => {
      const u = new Float64Array(x.length);
      for (let i = 0; i < x.length; i += d) {
        const point = x.subarray(i, i + d);
        for (let k = 0; k < d; k++) {
          u[i + k] = matrix
            ? theta() * matrix[k].reduce((sum, m, j) => sum + m * point[j], 0) : formulas[k](...point, t);
        }
      }
      return u;
    };
  };

  // x plus h times the sum of the slopes with these weights.
  const ahead = (x, h, weights, slopes) => Float64Array.from(x, (value, i) =>
    value + h * weights.reduce((sum, w, j) => w ? sum + w * slopes[j][i] : sum, 0));

  // One step from t to t + h of the method whose tableau is { a, b }.
  fm.step = ({ a, b }, u, x, t, h) => {
    const slopes = [u(x, t)];
    for (const row of a) {
      const c = row.reduce((sum, w) => sum + w, 0);
      slopes.push(u(ahead(x, h, row, slopes), t + c * h));
    }
    return ahead(x, h, b, slopes);
  };

  // The states at times[0], times[1], ... of points that are at x at the first of them.
  fm.follow = (tableau, u, x, times) => {
    const states = [x];
    for (let k = 1; k < times.length; k++) {
      states.push(fm.step(tableau, u, states[k - 1], times[k - 1], times[k] - times[k - 1]));
    }
    return states;
  };

  // lo, ..., hi in n equal steps.
  fm.grid = (lo, hi, n) => Array.from({ length: n + 1 }, (_, k) => lo + (hi - lo) * k / n);
})();

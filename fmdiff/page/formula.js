"use strict";
// Reads a formula that a user types, by the grammar of fmdiff/formula.py, and without running code.
//   const f = fm.formula("sin(pi*t/2)", ["x", "t"], grammar, "u");   f(x, t) is a number
// grammar = { functions, constants, longest, largest } comes from Python. Raises an Error of one
// sentence.
(() => {
  const FUNCTIONS = {
    sin: Math.sin, cos: Math.cos, tan: Math.tan, exp: Math.exp, log: Math.log, sqrt: Math.sqrt,
    tanh: Math.tanh, sigmoid: x => 1 / (1 + Math.exp(-x)), abs: Math.abs,
  };
  const NUMBER = new RegExp("^(?:0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+" +
    "|(?:\\d(?:_?\\d)*)?\\.?(?:\\d(?:_?\\d)*)?(?:[eE][+-]?\\d(?:_?\\d)*)?)");
  // what Python reads and a formula may not hold
  const OTHERS = /^(?:\/\/|\.[A-Za-z_]|[%@<>=&|~![\]{},;:'"]|(?:and|or|not|if|else|in|is|lambda|True|False|None)\b)/;

  fm.formula = (source, variables, grammar, option) => {
    const shown = source.length > 80 ? `${source.slice(0, 80)}...` : source;
    const fail = what => { throw new Error(`${option}="${shown}" ${what}`); };
    const names = [...variables, ...Object.keys(grammar.constants)];
    const unreadable = () => fail("cannot be read as a formula");
    const alone = () => fail(`may hold numbers, ${names.join(", ")}, + - * / ** ^, brackets and ` +
      `${grammar.functions.join(" ")} alone`);
    if (source.length > grammar.longest) fail(`is longer than ${grammar.longest} characters`);

    let rest = source;
    let token;
    // unknown names, in the order of evaluation; a formula that cannot be read is told first
    const unknown = [];
    const next = () => {
      rest = rest.trimStart();
      if (rest === "") { token = { kind: "end" }; return; }
      const digits = NUMBER.exec(rest)[0];
      const word = /^[\p{L}_][\p{L}\p{N}_]*/u.exec(rest);
      const sign = /^(?:\*\*|\^|[-+*/()])/.exec(rest);
      if (/\d/.test(digits) && /^[.\d]/.test(rest)) token = { kind: "number", text: digits };
      else if (OTHERS.test(rest)) alone();
      else if (word) token = { kind: "name", text: word[0] };
      else if (sign) token = { kind: sign[0] === "^" ? "**" : sign[0], text: sign[0] };
      else unreadable();
      rest = rest.slice(token.text.length);
      if (token.kind !== "number") return;
      const imaginary = /^[jJ](?![\p{L}\p{N}_])/u.test(rest);
      if (imaginary) alone();
      if (/^[\p{L}\p{N}_.]/u.test(rest) || /^0[\d_]*[1-9][\d_]*$/.test(digits)) unreadable();
    };
    const take = kind => {
      if (token.kind !== kind) return false;
      next();
      return true;
    };

    // A function of the values of the variables for each part, from the loosest binding inwards.
    const sum = () => {
      let left = product();
      for (;;) {
        const a = left;
        if (take("+")) { const b = product(); left = v => a(v) + b(v); }
        else if (take("-")) { const b = product(); left = v => a(v) - b(v); }
        else return left;
      }
    };
    const product = () => {
      let left = signed();
      for (;;) {
        const a = left;
        if (take("*")) { const b = signed(); left = v => a(v) * b(v); }
        else if (take("/")) { const b = signed(); left = v => a(v) / b(v); }
        else return left;
      }
    };
    const signed = () => {
      if (take("+")) return signed();
      if (take("-")) { const a = signed(); return v => -a(v); }
      return power();
    };
    const power = () => {
      const base = atom();
      if (!take("**")) return base;
      const exponent = signed(); // -2**-x**2 is -(2**(-(x**2)))
      return v => base(v) ** exponent(v);
    };
    const atom = () => {
      const { kind, text } = token;
      if (kind === "number") {
        const value = Number(text.replaceAll("_", ""));
        if (value > grammar.largest) unreadable();
        next();
        return () => value;
      }
      if (take("(")) {
        const inner = sum();
        if (!take(")")) unreadable();
        return inner;
      }
      if (kind !== "name") return unreadable();
      next();
      return take("(") ? call(text) : name(text);
    };
    const call = text => {
      if (token.kind === ")") alone();
      const known = grammar.functions.includes(text);
      if (!known) unknown.push(`has the unknown function '${text}'; ${choose(grammar.functions)}`);
      const argument = sum();
      if (!take(")")) unreadable();
      const f = FUNCTIONS[text];
      return v => f(argument(v));
    };
    const name = text => {
      const i = variables.indexOf(text);
      if (i >= 0) return v => v[i];
      if (!names.includes(text)) unknown.push(`has the unknown name '${text}'; ${choose(names)}`);
      const value = grammar.constants[text];
      return () => value;
    };
    const choose = all => `choose from: ${[...all].sort().join(", ")}`;

    next();
    const tree = sum();
    if (token.kind !== "end") token.kind === "(" ? alone() : unreadable();
    if (unknown.length) fail(unknown[0]);
    return (...values) => tree(values);
  };
})();

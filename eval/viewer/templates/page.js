"use strict";
// Everything a model wrote is set as textContent; no text is ever read as HTML.
(() => {
  const PAGE = 100;
  const { index, questions: embedded } = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const rows = document.getElementById("rows"), more = document.getElementById("more");
  const detail = document.getElementById("detail"), count = document.getElementById("count");
  const labels = index.models.map(model => model.label);
  let shown = [], total = 0, chosen = "", asked = 0, opened = 0;

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const unique = values => [...new Set(values)];
  const points = score => score === null ? "–" : String(Math.round(score * 10) / 10);
  const arrow = change => ({ won: " ▲", lost: " ▼" })[change] || "";
  const colour = score => score === null ? "" : score >= 100 ? "right" : score <= 0 ? "wrong" : "part";
  const badge = (score, change, title) => {
    const element = make("span", `badge ${colour(score)}`, points(score) + arrow(change));
    element.title = title;
    return element;
  };

  // Filters and the address
  const choices = {
    benchmark: unique(index.benchmarks.map(cell => cell.benchmark)),
    prompting: unique(index.benchmarks.map(cell => cell.prompting)),
    scoring: unique(index.benchmarks.flatMap(cell => Object.keys(cell.scorings))),
    model: labels,
    outcome: Object.keys(index.outcomes),
    change: index.changes,
  };
  for (const [name, values] of Object.entries(choices)) {
    const first = { scoring: "of the report", model: "any" }[name] || "all";
    form.elements[name].append(new Option(first, ""), ...values.map(value => new Option(value)));
  }
  const filters = () => Object.fromEntries([...new FormData(form)].filter(([, value]) => value));
  const remember = () => {
    const parts = new URLSearchParams(chosen ? { ...filters(), id: chosen } : filters());
    history.replaceState(null, "", `#${parts}`);
  };
  const recall = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    for (const element of form.elements) element.value = parts.get(element.name) || "";
    for (const element of form.querySelectorAll("select")) if (element.selectedIndex < 0) element.value = "";
    chosen = parts.get("id") || "";
  };

  // Data: the server's, or what the page holds, by the same rules
  const ask = async address => {
    const answer = await fetch(address);
    const value = await answer.json();
    if (!answer.ok) throw new Error(value.error);
    return value;
  };
  const passes = (question, wanted) => {
    if (wanted.benchmark && question.benchmark !== wanted.benchmark) return false;
    if (wanted.prompting && question.prompting !== wanted.prompting) return false;
    const models = wanted.model ? [wanted.model] : labels;
    const needle = (wanted.search || "").toLowerCase();
    const judged = models.filter(label => {
      const found = scored(question, label);
      return found && (!wanted.outcome || found.outcomes.includes(wanted.outcome))
        && (!wanted.change || found.change === wanted.change);
    });
    if (!judged.length) return false;
    if (!needle) return true;
    const texts = [question.question, question.name, String(question.reference ?? ""), ...Object.values(question.fields).map(String)];
    for (const label of models) {
      for (const one of question.responses[label] || []) {
        texts.push(one.thinking || "", one.text || "", ...(one.likelihoods || []).map(pair => pair[0]));
      }
    }
    return texts.some(text => text.toLowerCase().includes(needle));
  };
  const list = async (wanted, offset) => {
    if (!embedded) return ask(`/api/questions?${new URLSearchParams({ ...wanted, offset, limit: PAGE })}`);
    const found = embedded.filter(question => passes(question, wanted));
    return { total: found.length, items: found.slice(offset, offset + PAGE) };
  };
  const details = async id => {
    if (!embedded) return ask(`/api/question?${new URLSearchParams({ id })}`);
    const found = embedded.find(question => question.id === id);
    if (!found) throw new Error(`this page does not hold the question ${id}`);
    return found;
  };

  // The list
  const scored = (question, label) => {
    const scorings = question.models[label];
    return scorings && (scorings[form.elements.scoring.value] || scorings[question.primary]);
  };
  const addRow = question => {
    const button = make("button");
    button.type = "button";
    button.dataset.id = question.id;
    button.append(make("span", "where", `${question.benchmark} · ${question.prompting} · ${question.name}`),
      make("span", "text", question.text || question.question));
    const badges = make("span", "badges");
    for (const label of labels) {
      const found = scored(question, label);
      if (found) badges.append(badge(found.score, found.change, `${label}: ${found.outcomes.join(", ") || "no response"}`));
    }
    button.append(badges);
    button.addEventListener("click", () => open(question.id));
    const item = make("li");
    item.append(button);
    rows.append(item);
  };
  const fail = (place, error) => place.replaceChildren(make("p", "note", error.message));
  const load = async () => {
    const mine = ++asked, wanted = filters(), offset = shown.length;
    try {
      const found = await list(wanted, offset);
      if (mine !== asked) return;
      total = found.total;
      shown.push(...found.items);
      found.items.forEach(addRow);
      count.textContent = `${total.toLocaleString("en")} ${total === 1 ? "question" : "questions"}`;
      more.hidden = shown.length >= total;
      mark();
    } catch (error) {
      if (mine === asked) fail(count, error);
    }
  };
  const refill = async () => {
    shown = [];
    rows.replaceChildren();
    more.hidden = true;
    count.textContent = "…";
    await load();
    if (chosen) await open(chosen, false);
    else if (shown.length) await open(shown[0].id, false);
    else detail.replaceChildren(make("p", "muted", "No question passes the filters."));
  };
  const mark = scroll => {
    for (const button of rows.querySelectorAll("button")) {
      if (button.dataset.id !== chosen) { button.removeAttribute("aria-current"); continue; }
      button.setAttribute("aria-current", "true");
      if (scroll) button.scrollIntoView({ block: "nearest" });
    }
  };

  // One question
  const fold = (title, text, isOpen) => {
    const element = make("details");
    element.open = isOpen;
    element.append(make("summary", "", title), make("pre", "", text));
    return element;
  };
  const scores = (found, rules) => {
    const items = make("ul", "scores");
    for (const [scoring, one] of Object.entries(found)) {
      const item = make("li");
      const rule = rules[scoring] ? ` (${rules[scoring].rule})` : "";
      const name = rules[scoring] ? rules[scoring].answer : "answer";
      item.append(badge(one.score, "", rules[scoring] ? rules[scoring].text : scoring),
        ` ${scoring}${rule}: ${one.outcome.replaceAll("_", " ")}`,
        one.answer === null || name === null ? "" : `, ${name} ${one.answer}`);
      item.append(...one.why.map(line => make("span", "why", line)));
      items.append(item);
    }
    return items;
  };
  const response = (one, number, many, rules) => {
    const element = make("div", "response");
    if (one.likelihoods) {
      const table = make("table", "likelihoods");
      for (const [answer, value] of one.likelihoods) {
        const row = make("tr");
        row.append(make("td", "", answer), make("td", "", `${value.toFixed(2)} nats`));
        table.append(row);
      }
      element.append(table);
    } else {
      element.append(make("div", "muted", `${many ? `response ${number + 1}, ` : ""}${one.tokens.toLocaleString("en")} tokens`));
      if (one.thinking !== null) element.append(fold("thinking", one.thinking, false));
      element.append(make("pre", "", one.text));
    }
    element.append(scores(one.scores, rules));
    return element;
  };
  const card = (question, label) => {
    const element = make("section", `model${label === "base" ? " base" : ""}`);
    element.append(make("h3", "", label));
    const badges = make("div", "badges");
    for (const [scoring, found] of Object.entries(question.models[label])) {
      if (found.score !== null) badges.append(badge(found.score, found.change, scoring), make("small", "muted", `${scoring} ${found.change || ""}`));
    }
    element.append(badges);
    const responses = question.responses[label] || [];
    if (!responses.length) element.append(make("p", "muted", "no response yet"));
    responses.forEach((one, number) => element.append(response(one, number, responses.length > 1, question.rules)));
    return element;
  };
  const render = question => {
    const facts = make("dl");
    const fact = (name, text) => facts.append(make("dt", "", name), make("dd", "", text));
    if (question.reference_text !== null) fact("reference", question.reference_text);
    if (question.unit) fact("judged with", `its ${question.other_parts} other parts (${question.unit})`);
    for (const [scoring, { rule, text }] of Object.entries(question.rules)) fact(scoring, `${rule}. ${text}`);
    const prompt = question.prompt ?? Object.entries(question.fields).map(([name, value]) => `${name}: ${value}`).join("\n");
    const models = make("div", "models");
    models.append(...labels.filter(label => question.models[label]).map(label => card(question, label)));
    detail.replaceChildren(make("h2", "", `${question.benchmark} · ${question.prompting} · ${question.name}`),
      make("div", "muted", question.group),
      question.restricted ? make("p", "note", "Its publisher asks not to spread the questions of this benchmark. They are not stored, and an exported page has none of it.") : "",
      prompt ? fold("prompt", prompt, true) : "", facts, models);
    detail.scrollTop = 0;
  };
  const open = async (id, scroll = true) => {
    const mine = ++opened;
    chosen = id;
    remember();
    mark(scroll);
    try {
      const question = await details(id);
      if (mine === opened) render(question);
    } catch (error) {
      if (mine === opened) fail(detail, error);
    }
  };
  const step = async by => {
    const at = shown.findIndex(question => question.id === chosen);
    if (at + by >= shown.length && shown.length < total) await load();
    const next = shown[Math.max(0, at + by)];
    if (next && next.id !== chosen) await open(next.id);
  };

  let wait = 0;
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => {
    clearTimeout(wait);
    wait = setTimeout(() => { chosen = ""; remember(); refill(); }, event.target.type === "search" ? 250 : 0);
  });
  more.addEventListener("click", load);
  addEventListener("hashchange", () => { recall(); refill(); });
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
    if (event.key === "/") { event.preventDefault(); form.elements.search.focus(); }
  });
  document.getElementById("legend").open = matchMedia("(min-width: 761px)").matches;  // a phone has no room for it
  document.querySelector("#legend ol").append(...labels.map(label => make("li", "", label)));
  recall();
  refill();
})();

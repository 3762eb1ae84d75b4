"use strict";
// One study, one listener at a time. Every answer goes to localStorage at once. Nothing here says which level is which;
// X is drawn from the listener's name, as `draws.py` does.
(() => {
  const byId = (id) => document.getElementById(id);
  const study = JSON.parse(byId("study").textContent);
  const PLACE = `miso-abx-${study.id}`;
  const FADE_S = 0.005;

  // ---- chance ----
  const draw = (...words) => {
    let bits = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(words.join("/"))) bits = Math.imul(bits ^ byte, 0x01000193);
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    return (bits ^ (bits >>> 16)) >>> 0;
  };
  const plainName = (name) => name.replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, "").trim().normalize("NFC");
  const inOrder = (name, list) =>
    list.map((each) => [draw(study.id, name, "order", each.id ?? each), each]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);

  // ---- what is kept ----
  const isKept = (found) =>
    found?.listeners instanceof Object && "current" in found
    && Object.values(found.listeners).every((each) => each?.done && each.drafts && Array.isArray(each.log));
  const read = () => {
    try {
      const found = JSON.parse(localStorage.getItem(PLACE));
      if (isKept(found)) return found;
    } catch {
      // What is damaged is begun anew.
    }
    return { current: null, listeners: {} };
  };
  let kept = read();
  const keep = () => {
    try {
      localStorage.setItem(PLACE, JSON.stringify(kept));
    } catch {
      byId("not-kept").hidden = false;
    }
  };
  keep();
  const slot = (name) => `~${name}`; // no name may be one of Object's own words
  const listener = () => kept.listeners[slot(kept.current)];
  let steps = [];
  const stepsOf = (name) => [
    ...inOrder(name, study.trials).map((trial) => ({ kind: "trial", ...trial })),
    ...inOrder(name, study.items).map((item) => ({ kind: "rating", ...item })),
  ];
  const place = () => steps.findIndex((step) => !(step.id in listener().done));

  // ---- sound ----
  let context = null;
  let playing = null;
  let latest = 0;
  const decoded = new Map();
  const wake = () => {
    context ??= new AudioContext();
    if (context.state === "suspended") context.resume();
  };
  const decode = (number) => {
    if (!decoded.has(number)) {
      const bytes = Uint8Array.from(atob(study.sounds[number]), (letter) => letter.charCodeAt(0));
      const sound = context.decodeAudioData(bytes.buffer);
      sound.catch(() => (byId("not-played").hidden = false));
      decoded.set(number, sound);
    }
    return decoded.get(number);
  };
  const moment = () => (playing ? (context.currentTime - playing.begin) % playing.source.buffer.duration : 0);
  const stop = () => {
    latest += 1;
    if (!playing) return;
    const { source, gain, button } = playing;
    gain.gain.setTargetAtTime(0, context.currentTime, FADE_S / 3);
    source.stop(context.currentTime + 2 * FADE_S);
    button.setAttribute("aria-pressed", "false");
    playing = null;
  };
  const play = async (number, button) => {
    wake();
    latest += 1;
    const asked = latest;
    const buffer = await decode(number).catch(() => null);
    if (buffer === null || asked !== latest) return;
    // The same again: from the beginning. Another: at the same moment.
    const since = playing?.button === button ? 0 : moment();
    const at = since < buffer.duration ? since : 0;
    stop();
    const source = new AudioBufferSourceNode(context, { buffer, loop: true });
    const gain = new GainNode(context, { gain: 0 });
    gain.gain.setTargetAtTime(1, context.currentTime, FADE_S / 3);
    source.connect(gain).connect(context.destination);
    source.start(context.currentTime, at);
    playing = { source, gain, button, number, begin: context.currentTime - at };
    button.setAttribute("aria-pressed", "true");
    button.classList.add("is-heard");
    heard(button);
  };
  const follow = () => {
    const share = playing ? moment() / playing.source.buffer.duration : 0;
    for (const head of document.querySelectorAll(".at")) head.style.transform = `scaleX(${share})`;
    requestAnimationFrame(follow);
  };

  // ---- what is shown ----
  const sections = ["welcome", "trial", "rating", "break", "end"].map(byId);
  let shown = null;
  let step = null;
  let began = 0;
  let current = {};
  const show = (id) => {
    stop();
    shown = id;
    for (const section of sections) section.hidden = section.id !== id;
    byId("bar").hidden = id === "welcome" || id === "end";
    byId(id).querySelector(id === "welcome" ? "#name" : "h1").focus();
    scrollTo(0, 0);
  };
  const next = () => byId(shown).querySelector("[data-next]");

  const markProgress = () => {
    const index = place();
    byId("progress").textContent = `${index + 1} of ${steps.length}`;
    byId("track").style.transform = `scaleX(${index / steps.length})`;
    byId("undo").disabled = !listener().log.length;
  };
  const goOn = () => {
    wake();
    decoded.clear();
    if (place() < 0) return end();
    step = steps[place()];
    began = performance.now();
    markProgress();
    const draft = listener().drafts[step.id] ?? { answer: null, values: {} };
    if (step.kind === "trial") showTrial(draft);
    else showRating(draft);
  };

  const mapped = (trial) => {
    const bits = draw(study.id, kept.current, trial.id);
    const [a, b] = bits & 1 ? [...trial.sounds].reverse() : trial.sounds;
    return { A: a, B: b, X: bits & 2 ? b : a, x: bits & 2 ? "B" : "A" };
  };

  const showTrial = (draft) => {
    const section = byId("trial");
    section.dataset.step = step.id;
    current = { sounds: mapped(step), heard: new Set(), draft };
    for (const button of section.querySelectorAll("[data-play]")) button.classList.remove("is-heard");
    show("trial");
    for (const number of step.sounds) decode(number);
    markAnswer();
    hint();
  };
  const markAnswer = () => {
    for (const button of document.querySelectorAll("[data-answer]")) {
      button.setAttribute("aria-pressed", String(button.dataset.answer === current.draft.answer));
      button.disabled = !mayAnswer();
    }
    next().disabled = current.draft.answer === null;
  };
  const mayAnswer = () =>
    current.draft.answer !== null || (current.heard.has("X") && (current.heard.has("A") || current.heard.has("B")));
  const hint = () => {
    const words = mayAnswer() ? "" : current.heard.has("X") ? "Now A or B." : "Listen to X, and to A or B, before you answer.";
    if (byId("trial-hint").textContent !== words) byId("trial-hint").textContent = words;
  };
  const choose = (answer) => {
    if (!mayAnswer()) return;
    current.draft.answer = answer;
    keepDraft();
    markAnswer();
  };
  const keepDraft = () => {
    listener().drafts[step.id] = current.draft;
    keep();
  };

  const showRating = (draft) => {
    byId("rating").dataset.step = step.id;
    byId("said").textContent = step.text;
    const takes = inOrder(kept.current, step.takes);
    byId("last-take").textContent = takes.length;
    current = { sounds: { R: step.reference }, heard: new Set(), draft };
    byId("takes").replaceChildren(...takes.map((number, index) => takeRow(number, index + 1)));
    byId("rating").querySelector("[data-play=R]").classList.remove("is-heard");
    show("rating");
    for (const number of [step.reference, ...takes]) decode(number);
    markRatings();
  };
  const takeRow = (number, index) => {
    current.sounds[index] = number;
    const row = document.createElement("div");
    row.className = "take";
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sound";
    button.dataset.play = index;
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-keyshortcuts", index);
    button.setAttribute("aria-label", `Play take ${index}`);
    const letter = document.createElement("span");
    letter.className = "letter";
    letter.textContent = index;
    button.append(letter);
    const slider = document.createElement("input");
    slider.type = "range";
    slider.min = 0;
    slider.max = 100;
    slider.value = current.draft.values[number] ?? 50;
    slider.dataset.take = number;
    slider.dataset.index = index;
    slider.setAttribute("aria-label", `Take ${index}, 0 is bad, 100 is as good as the reference`);
    const output = document.createElement("output");
    slider.addEventListener("input", () => rate(slider));
    slider.addEventListener("click", () => rate(slider)); // where it stands is a rating too
    row.append(button, slider, output);
    return row;
  };
  const rate = (slider) => {
    current.draft.values[slider.dataset.take] = Number(slider.value);
    keepDraft();
    markRatings();
  };
  const markRatings = () => {
    let open = 0;
    for (const slider of byId("takes").querySelectorAll("input")) {
      const value = current.draft.values[slider.dataset.take];
      slider.classList.toggle("is-open", value === undefined);
      slider.nextElementSibling.textContent = value ?? "–";
      open += value === undefined;
    }
    next().disabled = open > 0;
    const words = open ? `${open === 1 ? "One take is" : `${open} takes are`} not rated yet: move the slider, or click its knob to leave it at 50.` : "";
    if (byId("rating-hint").textContent !== words) byId("rating-hint").textContent = words;
  };

  const heard = (button) => {
    current.heard?.add(button.dataset.play);
    if (shown === "trial") {
      markAnswer();
      hint();
    }
  };

  const confirm = () => {
    if (next().disabled) return;
    const seconds = Math.round((performance.now() - began) / 100) / 10;
    const { answer, values } = current.draft;
    listener().done[step.id] = step.kind === "trial" ? { answer, seconds } : { values, seconds };
    listener().log.push(step.id);
    delete listener().drafts[step.id];
    keep();
    goOn();
  };
  const undo = () => {
    const id = listener().log.pop();
    if (id === undefined) return;
    const { answer = null, values = {} } = listener().done[id];
    delete listener().done[id];
    listener().drafts[id] = { answer, values };
    keep();
    goOn();
  };
  const rest = (isBack) => {
    byId("break-title").textContent = isBack ? `Welcome back, ${kept.current}` : "A break";
    markProgress();
    byId("break-text").textContent = `${listener().log.length} of ${steps.length} are done, and kept in this browser.`;
    show("break");
  };
  const end = () => {
    const trials = steps.filter((each) => each.kind === "trial");
    const right = trials.filter((each) => listener().done[each.id].answer === mapped(each).x).length;
    byId("score").textContent = trials.length
      ? `You were right in ${right} of ${trials.length} comparisons; a guess would be in about ${Math.round(trials.length / 2)}.`
      : "All takes are rated.";
    show("end");
  };
  const enter = (name) => {
    kept.current = name;
    kept.listeners[slot(name)] ??= { done: {}, log: [], drafts: {} };
    keep();
    steps = stepsOf(name);
  };
  const leave = () => {
    kept.current = null;
    keep();
    byId("name").value = "";
    show("welcome");
  };

  const save = () => {
    const { done, log } = listener();
    const given = (kind, name) =>
      steps.filter((each) => each.kind === kind && each.id in done).map((each) => ({ [name]: each.id, ...done[each.id] }));
    const answers = {
      miso_abx_answers: 1,
      study: study.id,
      listener: kept.current,
      finished: log.length === steps.length,
      answers: given("trial", "trial"),
      ratings: given("rating", "item"),
    };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(answers, null, 1)}\n`], { type: "application/json" }));
    link.download = `answers-${kept.current.match(/[\p{L}\p{M}\p{N}]+/gu)?.join("-") ?? "listener"}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  // ---- by hand ----
  const press = (name) => {
    const button = byId(shown).querySelector(`[data-play="${name}"]`);
    if (button) play(current.sounds[name], button);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.play) press(button.dataset.play);
    else if (button?.dataset.answer) {
      choose(button.dataset.answer);
      next().focus();
    }
    else if (button && "next" in button.dataset) confirm();
  });
  byId("start").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = plainName(byId("name").value);
    if (!name) {
      byId("name").value = "";
      byId("name").reportValidity();
      return;
    }
    enter(name);
    goOn();
  });
  byId("volume").addEventListener("click", (event) => {
    if (playing) stop();
    else play(study.volume, event.currentTarget);
  });
  byId("undo").addEventListener("click", undo);
  byId("rest").addEventListener("click", () => rest(false));
  byId("save").addEventListener("click", save);
  byId("save-end").addEventListener("click", save);
  byId("resume").addEventListener("click", goOn);
  byId("other").addEventListener("click", leave);
  byId("next-listener").addEventListener("click", leave);

  // ---- by keyboard ----
  const chooseByKey = (answer) => {
    choose(answer);
    byId("trial-title").focus(); // on a button, space would press it instead of stopping the sound
  };
  const KEYS = {
    trial: {
      a: () => press("A"), b: () => press("B"), x: () => press("X"),
      1: () => chooseByKey("A"), ArrowLeft: () => chooseByKey("A"), 2: () => chooseByKey("B"), ArrowRight: () => chooseByKey("B"),
      Enter: confirm, " ": stop, Backspace: undo, p: () => rest(false), s: save,
    },
    rating: { r: () => press("R"), Enter: confirm, " ": stop, Backspace: undo, p: () => rest(false), s: save },
    break: { Enter: () => byId("resume").click(), s: save },
    end: { s: save },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || shown === "welcome") return;
    const { target } = event;
    if ((event.key === "Enter" || event.key === " ") && target.closest("button")) return;
    if (event.key.startsWith("Arrow") && target.matches("input")) return;
    if (event.key === "Enter" && target.matches(".is-open")) {
      event.preventDefault();
      if (!event.repeat) rate(target);
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    let action = KEYS[shown][key];
    if (shown === "rating" && current.sounds[key] && key !== "R") {
      action = () => {
        press(key);
        byId("takes").querySelector(`[data-index="${key}"]`).focus();
      };
    }
    if (!action) return;
    event.preventDefault();
    if (!event.repeat) action();
  });

  requestAnimationFrame(follow);
  const begin = () => {
    if (kept.current === null || !listener()) return show("welcome");
    steps = stepsOf(kept.current);
    if (place() < 0) end();
    else rest(true);
  };
  // Another tab has gone on: what it kept must not be written over.
  addEventListener("storage", (event) => {
    if (event.key !== PLACE || !event.newValue) return;
    kept = read();
    begin();
  });
  begin();
})();

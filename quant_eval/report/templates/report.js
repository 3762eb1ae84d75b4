"use strict";
// Without a script the page reads and plays just as well: this adds the switch between two renditions, blind, and saving.
(() => {
  const sounds = [...document.querySelectorAll("audio")];

  // Lengths are shown only for what comes into view: browsers load some tens of sounds at most.
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        target.preload = "metadata";
        seen.unobserve(target);
      }
    }
  }, { rootMargin: "400px" });

  for (const sound of sounds) {
    seen.observe(sound);
    sound.addEventListener("play", () => {
      for (const other of sounds) {
        if (other !== sound) other.pause();
      }
      sound.closest(".player").classList.add("is-playing");
    });
    sound.addEventListener("pause", () => sound.closest(".player").classList.remove("is-playing"));
  }

  for (const button of document.querySelectorAll(".switch")) {
    const [first, second] = button.closest(".players").querySelectorAll("audio");
    button.hidden = false;
    button.addEventListener("click", () => {
      const [from, to] = first.paused ? [second, first] : [first, second];
      const moment = from.paused ? 0 : from.currentTime;
      to.currentTime = Number.isFinite(to.duration) ? Math.min(moment, to.duration) : moment;
      from.pause();
      to.play();
    });
  }

  // Two renditions are in random order and without names, and what would tell them apart by eye is away, until guessed.
  let right = 0;
  let guessed = 0;
  const still = new Set();
  for (const guess of document.querySelectorAll(".guess")) {
    const clip = guess.closest(".clip");
    const players = [...clip.querySelectorAll(".player")];
    const names = players.map((player) => player.querySelector(".name").textContent);
    const isSwapped = Math.random() < 0.5;
    if (isSwapped) players[0].before(players[1]);
    const label = (index, text) => {
      const player = players[isSwapped ? 1 - index : index];
      player.querySelector(".name").textContent = text;
      player.querySelector("audio").setAttribute("aria-label", text);
    };
    ["A", "B"].forEach((letter, index) => label(index, letter));
    clip.classList.add("is-blind");
    guess.hidden = false;
    const reveal = () => {
      still.delete(reveal);
      ["A", "B"].forEach((letter, index) => label(index, `${letter}: ${names[isSwapped ? 1 - index : index]}`));
      clip.classList.remove("is-blind");
      guess.hidden = true;
    };
    still.add(reveal);
    for (const button of guess.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        const told = clip.querySelector(".told");
        const [one, other] = players.map((player) => player.querySelector("audio").src);
        if (one === other) {
          told.textContent = "Both are equal: nothing can be told.";
          told.hidden = false;
        } else if (button.dataset.guess !== "") {
          const isRight = button.dataset.guess === String(Number(isSwapped));
          guessed += 1;
          right += isRight;
          told.textContent = isRight ? "Right." : "No, it is the other one.";
          told.hidden = false;
          document.getElementById("score").textContent = `You were right in ${right}\u00a0of\u00a0${guessed}.`;
        }
        reveal();
      });
    }
  }
  const blind = document.getElementById("blind");
  if (still.size) {
    blind.hidden = false;
    document.getElementById("show-all").addEventListener("click", (event) => {
      for (const reveal of [...still]) reveal();
      event.currentTarget.hidden = true;
    });
  }

  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const text = document.getElementById("results").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "results.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();

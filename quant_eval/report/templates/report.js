"use strict";
// Without a script the page reads and plays just as well: this adds the switch between two renditions, and saving.
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

// Which action a key means. Digits and letters are found by their place on the keyboard too, so that they work
// on keyboards that type other digits or another script.
"use strict";

function actionOf(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return null;
  const digit = /^[0-9]$/.test(event.key) ? event.key : (/^(?:Digit|Numpad)([0-9])$/.exec(event.code) || [])[1];
  if (digit !== undefined) return { name: "rank", rank: Number(digit) || 10 };
  const letter = /^[a-z]$/i.test(event.key) ? event.key.toLowerCase()
    : event.key.length === 1 && !/[ -~]/.test(event.key) && /^Key[A-Z]$/.test(event.code) ? event.code[3].toLowerCase()
    : null;
  const names = {
    ArrowDown: "down", ArrowUp: "up", ArrowLeft: "back", ArrowRight: "next", Enter: "save",
    j: "down", k: "up", e: "edit", s: "skip", f: "flag",
  };
  const name = names[letter || event.key];
  return name ? { name } : null;
}

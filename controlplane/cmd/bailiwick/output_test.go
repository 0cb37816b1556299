package main

import (
	"strings"
	"testing"
)

// Reasons, notes and errors are other people's text: a terminal must not act on it.
func TestTables_ShowNoControlCharacters(t *testing.T) {
	d := seeded(t)
	evil := "\x1b]0;owned\a\x1b[2J\u009b31m\u202egpj.exe\r\nACCEPTED"
	d.must(nil, "quota", "top-up", "--customer", "acme", "--units", "5", "--reason", evil, "--request-id", "r1")
	out := d.must(nil, "quota", "top-ups", "--customer", "acme")
	if strings.ContainsAny(out, "\x1b\a\u009b\u202e\r") || strings.Count(out, "\n") != 2 || !strings.Contains(out, `\x1b]0;owned\a`) {
		t.Errorf("got %q", out)
	}
	var list []struct{ Reason, By string }
	if d.must(&list, "quota", "top-ups", "--customer", "acme", "-o", "json"); len(list) != 1 || list[0].Reason != evil || list[0].By != "admin" {
		t.Errorf("JSON: got %q, want the text as it is", list)
	}
	if _, _, errs := d.run("", "quota", "show", "--customer", "x\x1b[2J"); strings.Contains(errs, "\x1b") {
		t.Errorf("an error: got %q", errs)
	}
	if got := legible("naïve 東京 ok"); got != "naïve 東京 ok" {
		t.Errorf("letters: got %q", got)
	}
}

package conformance_test

import (
	"testing"

	"github.com/anishathalye/porcupine"

	"bailiwick/controlplane/internal/group/conformance"
)

// The check can fail: a read of what was overwritten before it began, and a lost write, are found.
func TestHistory_CheckFindsWhatIsWrong(t *testing.T) {
	op := func(from, to int64, in conformance.Asked, out conformance.Told) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
	}
	put := func(from, to int64, v string, mod uint64) porcupine.Operation {
		return op(from, to, conformance.Asked{Op: "put", Key: "k", Value: v}, conformance.Told{OK: true, Mod: mod})
	}
	get := func(from, to int64, v string, mod uint64) porcupine.Operation {
		return op(from, to, conformance.Asked{Op: "get", Key: "k"}, conformance.Told{OK: mod > 0, Mod: mod, Value: v})
	}
	unknown := op(0, 100, conformance.Asked{Op: "put", Key: "k", Value: "u"}, conformance.Told{Unknown: true})
	for name, c := range map[string]struct {
		history []porcupine.Operation
		ok      bool
	}{
		"in order":                  {[]porcupine.Operation{put(0, 1, "a", 1), get(2, 3, "a", 1)}, true},
		"stale read":                {[]porcupine.Operation{put(0, 1, "a", 1), put(2, 3, "b", 2), get(4, 5, "a", 1)}, false},
		"lost write":                {[]porcupine.Operation{put(0, 1, "a", 1), get(2, 3, "", 0)}, false},
		"unknown, then seen":        {[]porcupine.Operation{unknown, put(0, 1, "a", 1), get(2, 3, "u", 2)}, true},
		"unknown, never seen":       {[]porcupine.Operation{unknown, put(0, 1, "a", 1), get(2, 3, "a", 1)}, true},
		"seen and then gone":        {[]porcupine.Operation{unknown, put(0, 1, "a", 1), get(2, 3, "u", 2), get(4, 5, "a", 1)}, false},
		"two compares at one place": {[]porcupine.Operation{op(0, 1, conformance.Asked{Op: "cas", Key: "k", Value: "a"}, conformance.Told{OK: true, Mod: 1}), op(2, 3, conformance.Asked{Op: "cas", Key: "k", Value: "b"}, conformance.Told{OK: true, Mod: 2})}, false},
	} {
		rec := &recorder{ctx: t.Context()}
		conformance.CheckHistory(rec, c.history)
		if got := len(rec.said) == 0; got != c.ok {
			t.Errorf("%s: got %v, want %v", name, got, c.ok)
		}
	}
}

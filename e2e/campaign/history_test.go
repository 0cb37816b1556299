package main

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

// The check can fail: stale reads, lost writes and two winners of one etag are found.
func TestHistory_CheckFindsWhatIsWrong(t *testing.T) {
	op := func(from, to int64, in apiAsked, out apiTold) porcupine.Operation {
		in.key = "zone1"
		return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
	}
	put := func(from, to int64, v string) porcupine.Operation {
		return op(from, to, apiAsked{op: "put", value: v}, apiTold{})
	}
	get := func(from, to int64, v string) porcupine.Operation {
		return op(from, to, apiAsked{op: "get"}, apiTold{value: v})
	}
	cas := func(from, to int64, expect, v string, out apiTold) porcupine.Operation {
		return op(from, to, apiAsked{op: "cas", value: v, expect: expect}, out)
	}
	unknown := op(0, 100, apiAsked{op: "put", value: "u"}, apiTold{unknown: true})
	for name, c := range map[string]struct {
		ops []porcupine.Operation
		ok  bool
	}{
		"in order":            {[]porcupine.Operation{put(0, 1, "a"), get(2, 3, "a"), cas(4, 5, "a", "b", apiTold{}), get(6, 7, "b")}, true},
		"stale read":          {[]porcupine.Operation{put(0, 1, "a"), put(2, 3, "b"), get(4, 5, "a")}, false},
		"lost write":          {[]porcupine.Operation{put(0, 1, "a"), get(2, 3, "")}, false},
		"unknown, seen":       {[]porcupine.Operation{unknown, put(0, 1, "a"), get(2, 3, "u")}, true},
		"unknown, never seen": {[]porcupine.Operation{unknown, put(0, 1, "a"), get(2, 3, "a")}, true},
		"seen and gone":       {[]porcupine.Operation{unknown, put(0, 1, "a"), get(2, 3, "u"), get(4, 5, "a")}, false},
		"two winners":         {[]porcupine.Operation{put(0, 1, "a"), cas(2, 3, "a", "b", apiTold{}), cas(4, 5, "a", "c", apiTold{})}, false},
		"refused for nothing": {[]porcupine.Operation{put(0, 1, "a"), cas(2, 3, "a", "b", apiTold{mismatch: true})}, false},
		"rightly refused":     {[]porcupine.Operation{put(0, 1, "b"), cas(2, 3, "a", "c", apiTold{mismatch: true}), get(4, 5, "b")}, true},
	} {
		if got := porcupine.CheckOperations(apiModel.ToModel(), c.ops); got != c.ok {
			t.Errorf("%s: got %v, want %v", name, got, c.ok)
		}
	}
}

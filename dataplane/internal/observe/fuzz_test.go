package observe

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"
)

// Whatever one edge of the zone says, it names no region and no edge that this one does not know, and has no word on its own
// region. While this edge is young it may have others declared dead, but not more than the guard lets; later its word against
// everybody else's is no majority. A word that is written is read as it was.
func FuzzHear(f *testing.F) {
	for _, w := range []word{
		{}, {Ready: true}, {Ready: true, Up: map[string]bool{"r0": true, "r1": true, "r2": false, "r3": true}},
		{Ready: true, Up: map[string]bool{"r0": false, "r1": true, "r2": true, "r3": true, "r9": false}, Dead: []string{"r2", "r3", "r9", "r1", "r0", "r0"}},
		{Ready: true, Up: map[string]bool{"r2": false}, Dead: []string{"r2"}}, {Dead: []string{"r1"}},
	} {
		b, err := json.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(1))
		f.Add(b, uint16(30_000))
	}
	f.Add([]byte(`{"ready":true,"up":null,"dead":[null,""]}`), uint16(0))
	f.Add([]byte(`{"READY":true,"ready":1}`), uint16(0))
	f.Add([]byte(`{"ready":true} `), uint16(0))
	f.Add([]byte(`{"ready":true}{"ready":true}`), uint16(0))
	f.Fuzz(func(t *testing.T, said []byte, ms uint16) {
		w, err := hear(bytes.NewReader(said))
		if err != nil && (w.Ready || w.Up != nil || w.Dead != nil) {
			t.Fatalf("%q: %+v beside %v", said, w, err)
		}
		if err == nil {
			again, err := json.Marshal(w)
			if err != nil {
				t.Fatal(err)
			}
			back, err := hear(bytes.NewReader(again))
			if len(again) <= maxAnswer && (err != nil || !maps.Equal(back.Up, w.Up) || !slices.Equal(back.Dead, w.Dead)) {
				t.Fatalf("%q is read as %+v, and that as %+v, %v", said, w, back, err)
			}
		}
		at := time.Duration(ms) * time.Millisecond
		roster := map[string]string{"e0": "r0", "e1": "r1", "e2": "r2", "e3": "r3"}
		s, _ := Step(State{Self: "e0"}, Event{Roster: roster})
		s, _ = Step(s, Event{At: at, Roster: roster})
		for _, other := range []string{"e2", "e3"} { // who reach everybody
			s, _ = Step(s, Event{At: at, Probed: &Probe{Edge: other, OK: true, Says: map[string]bool{"r0": true, "r1": true, "r2": true, "r3": true}}})
		}
		s, effects := Step(s, Event{At: at, Probed: &Probe{Edge: "e1", OK: err == nil, Says: w.Up, Dead: w.Dead}})
		if len(s.Regions) != 4 || len(s.Edges) != 4 {
			t.Fatalf("%q: the zone is %v and %v", said, s.Regions, s.Edges)
		}
		dead := 0
		for name, r := range s.Regions {
			if r.Dead {
				dead++
			}
			if _, known := roster["e"+name[1:]]; !known {
				t.Fatalf("%q: there is a region %q", said, name)
			}
		}
		if dead > len(s.Regions)/2 || s.Regions["r1"].Dead || dead > 0 && (err != nil || at >= healthyFor) {
			t.Fatalf("%q after %v: %v", said, at, s.Regions)
		}
		effects = slices.DeleteFunc(effects, func(e Effect) bool { return e.Region == "" }) // the guard
		if len(effects) != dead {
			t.Fatalf("%q after %v: %d regions are dead, and it is told so: %+v", said, at, dead, effects)
		}
	})
}

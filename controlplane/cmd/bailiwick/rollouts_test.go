package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

// seat is a standard output at which somebody sits, or nobody.
type seat struct {
	bytes.Buffer
	terminal bool
}

func (s *seat) Terminal() bool { return s.terminal }

// reel is a standard error that changes what is shown once the state before has been written, so that no state is missed
// however slow the machine is.
type reel struct {
	bytes.Buffer
	next []func()
}

func (r *reel) Write(p []byte) (int, error) {
	n, err := r.Buffer.Write(p)
	if len(r.next) > 0 {
		next := r.next[0]
		r.next = r.next[1:]
		next()
	}
	return n, err
}

// A roll-out is a bar that is drawn over itself where somebody looks, and a line for each change where nobody does.
func TestRolloutWatch_DrawsABarOnATerminalAlone(t *testing.T) {
	d := newDesk(t, time.Second)
	r := model.Rollout{Number: 7, Round: 1, State: model.RolloutRunning, Began: time.Unix(1e9, 0), Since: time.Unix(1e9, 0), Changed: 1, Changes: []model.RolloutChange{{Kind: "Plan", Name: "gold"}},
		Zones: []model.RolloutZone{{Zone: "emea", Canary: "eu-west-edge-1", Rings: []model.RegionRing{{Regions: []string{"eu-west"}}, {Regions: []string{"eu-central"}}}}}}
	put := func(ring int, state, why string) func() {
		return func() {
			r := r
			r.State, r.Why = state, why
			r.Zones = slices.Clone(r.Zones)
			r.Zones[0].Ring = ring
			d.in.Catalog.Put(model.KeyRollout, model.Encode(r))
		}
	}
	watch := func(terminal bool, term, end string) (code int, stdout, stderr string) {
		put(0, model.RolloutRunning, "")()
		out, errs := &seat{terminal: terminal}, &reel{next: []func(){put(1, model.RolloutRunning, ""), put(2, model.RolloutRunning, ""), put(2, end, "")}}
		if end != model.RolloutDone {
			errs.next[2] = put(2, end, "FAILING")
		}
		code = run(t.Context(), []string{"rollout", "watch"}, world{func(k string) string {
			if k == "TERM" {
				return term
			}
			return d.env[k]
		}, strings.NewReader(""), out, errs})
		return code, out.String(), errs.String()
	}
	code, _, errs := watch(true, "xterm", model.RolloutDone)
	frames := strings.Split(errs, "\r\x1b[K")
	if code != exitOK || len(frames) != 5 || frames[0] != "" || strings.Count(errs, "\n") != 1 || !strings.HasSuffix(errs, "\n") {
		t.Fatalf("on a terminal: exit %d, %d frames of %q, want four on one line", code, len(frames)-1, errs)
	}
	for i, full := range []int{0, 8, 16, 24} {
		if want := "[" + strings.Repeat("█", full) + strings.Repeat("·", 24-full) + "] r7 "; !strings.HasPrefix(frames[i+1], want) {
			t.Errorf("frame %d is %q, want %q", i+1, frames[i+1], want)
		}
	}
	for _, c := range []struct {
		name, term string
		terminal   bool
	}{{"where nobody looks", "xterm", false}, {"on a dumb terminal", "dumb", true}} {
		code, _, errs := watch(c.terminal, c.term, model.RolloutDone)
		lines := strings.Split(strings.TrimSuffix(errs, "\n"), "\n")
		if code != exitOK || len(lines) != 4 || strings.ContainsAny(errs, "\r\x1b█") || !strings.HasPrefix(lines[1], "r7 running; emea: ring 2 of 3 (") || lines[3] != "r7 done" {
			t.Errorf("%s: exit %d, said:\n%s", c.name, code, errs)
		}
	}
	// What is taken back is a failure, and its bar is not full.
	code, out, errs := watch(true, "xterm", model.RolloutRolledBack)
	if last := errs[strings.LastIndex(errs, "\r\x1b[K"):]; code != exitFailure || !strings.Contains(last, "·] r7 rolled-back FAILING") || !strings.Contains(out, "rolled-back") {
		t.Errorf("taken back: exit %d, %q, %s", code, errs, out)
	}
}

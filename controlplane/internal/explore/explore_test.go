package explore_test

import (
	"errors"
	"testing"

	"bailiwick/controlplane/internal/explore"
)

// A counter that goes up to five, or from three into a trap.
func counter(trap bool, bad int) explore.Walk[int] {
	return explore.Walk[int]{
		Start: 0,
		Next: func(n int, emit explore.Emit[int]) {
			if n >= 5 {
				return
			}
			var err error
			if n+1 == bad {
				err = errors.New("bad")
			}
			emit(explore.Event{Name: "back"}, 0, nil)
			emit(explore.Event{Name: "up", A: n + 1}, n+1, err)
			if trap && n == 3 {
				emit(explore.Event{Name: "trap"}, 9, nil)
			}
		},
		Good: func(n int) bool { return n == 5 },
	}
}

func TestWalk_SeesEverything(t *testing.T) {
	r, err := counter(false, 0).Run()
	if err != nil || r.States != 6 || r.Steps != 10 || r.Depth != 5 || r.Good != 1 {
		t.Errorf("got %v, %v; want 6 states, 10 steps, depth 5, 1 good end", r, err)
	}
}

func TestWalk_FindsWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		walk explore.Walk[int]
		rule error
		last string
	}{
		"broken rule": {counter(false, 4), nil, "up(4,0)"},
		"trap":        {counter(true, 0), explore.ErrStuck, "trap(0,0)"},
	} {
		_, err := c.walk.Run()
		var broken *explore.Broken
		if !errors.As(err, &broken) || c.rule != nil && !errors.Is(err, c.rule) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if len(broken.Trace) != 4 || broken.Trace[3].String() != c.last {
			t.Errorf("%s: trace %v, want four steps that end with %s", name, broken.Trace, c.last)
		}
	}
	small := counter(false, 0)
	small.Limit = 3
	if _, err := small.Run(); !errors.Is(err, explore.ErrLimit) {
		t.Errorf("a walk beyond its limit: got %v, want %v", err, explore.ErrLimit)
	}
}

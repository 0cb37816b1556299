package lifecycle_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/shared/lifecycle"
)

type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(s string) { j.mu.Lock(); j.lines = append(j.lines, s); j.mu.Unlock() }

func (j *journal) want(t *testing.T, want ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.lines, want) {
		t.Errorf("order: got %v, want %v", j.lines, want)
	}
}

// part is ready after up and takes down to stop.
func (j *journal) part(name string, up, down time.Duration) lifecycle.Part {
	ready := make(chan struct{})
	return lifecycle.Part{Name: name, Ready: ready, Run: func(ctx context.Context) error {
		j.add("+" + name)
		time.Sleep(up)
		close(ready)
		<-ctx.Done()
		time.Sleep(down)
		j.add("-" + name)
		return ctx.Err()
	}}
}

var quiet = slog.New(slog.DiscardHandler)

func TestRun_StartsInOrderStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		// The first is slow to start and quick to stop, so that only waiting can order them.
		err := lifecycle.Run(ctx, quiet, j.part("store", 3*time.Second, 0), j.part("sync", time.Second, 2*time.Second), j.part("http", 0, 5*time.Second))
		if err != nil {
			t.Errorf("got %v, want nil", err)
		}
		j.want(t, "+store", "+sync", "+http", "-http", "-sync", "-store")
	})
}

func TestRun_APartsEndStopsTheRest(t *testing.T) {
	broken := errors.New("disk is gone")
	for _, tt := range []struct {
		name string
		ret  error
	}{{"error", broken}, {"nil", nil}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				err := lifecycle.Run(t.Context(), quiet, j.part("a", 0, 0),
					lifecycle.Part{Name: "b", Run: func(context.Context) error { time.Sleep(time.Second); return tt.ret }},
					j.part("c", 0, 0))
				if !errors.Is(err, tt.ret) {
					t.Errorf("got %v, want %v", err, tt.ret)
				}
				j.want(t, "+a", "+c", "-c", "-a")
			})
		})
	}
}

func TestRun_EndBeforeReadyStartsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		never := lifecycle.Part{Name: "b", Ready: make(chan struct{}), Run: func(context.Context) error { return io.ErrUnexpectedEOF }}
		err := lifecycle.Run(t.Context(), quiet, j.part("a", 0, 0), never, j.part("c", 0, 0))
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "b") {
			t.Errorf("got %v, want an error that names b and wraps %v", err, io.ErrUnexpectedEOF)
		}
		j.want(t, "+a", "-a")
	})
}

func TestRun_ContextEndsBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		stuck := lifecycle.Part{Name: "b", Ready: make(chan struct{}), Run: func(ctx context.Context) error { <-ctx.Done(); return nil }}
		if err := lifecycle.Run(ctx, quiet, j.part("a", 0, 0), stuck, j.part("c", 0, 0)); err != nil {
			t.Errorf("got %v, want nil", err)
		}
		j.want(t, "+a", "-a")
	})
}

func TestRun_LeavesALatePartBehindAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		var logged strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		late := j.part("late", 0, time.Hour)
		late.StopTimeout, late.Why = 2*time.Second, "drains before the store closes"
		start := time.Now()
		err := lifecycle.Run(ctx, slog.New(slog.NewTextHandler(&logged, nil)), j.part("a", 0, 0), late)
		if err == nil || !strings.Contains(err.Error(), "late") {
			t.Errorf("got %v, want an error that names the late part", err)
		}
		if got, want := time.Since(start), 3*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
		if !strings.Contains(logged.String(), late.Why) {
			t.Errorf("log does not give the reason: %s", logged.String())
		}
		j.want(t, "+a", "+late", "-a")
		time.Sleep(2 * time.Hour) // of the bubble: the part left behind must be able to end
		synctest.Wait()
		j.want(t, "+a", "+late", "-a", "-late")
	})
}

func TestRun_FirstErrorWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := errors.New("one"), errors.New("two")
		err := lifecycle.Run(t.Context(), quiet,
			lifecycle.Part{Name: "a", Run: func(ctx context.Context) error { <-ctx.Done(); return two }},
			lifecycle.Part{Name: "b", Run: func(context.Context) error { return one }})
		if !errors.Is(err, one) || errors.Is(err, two) {
			t.Errorf("got %v, want only %v", err, one)
		}
	})
}

func TestRun_EndedContextStartsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var j journal
	if err := lifecycle.Run(ctx, quiet, j.part("a", 0, 0)); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	j.want(t)
}

package main

import (
	"errors"
	"log/slog"
	"testing"
)

// A second SIGUSR2 starts no second process while one is about to take this one's place; after one that took nothing it does.
func TestReplacer_StartsOneAtATime(t *testing.T) {
	var r replacer
	log, started := slog.New(slog.DiscardHandler), 0
	end := make(chan error)
	start := func() (func() error, error) { started++; return func() error { return <-end }, nil }
	if err := r.once(log, start); err != nil {
		t.Fatal(err)
	}
	if err := r.once(log, start); !errors.Is(err, errReplaced) || started != 1 {
		t.Errorf("a second: %v, %d started", err, started)
	}
	end <- errors.New("it took nothing")
	r.wg.Wait()
	broken := errors.New("no such program")
	if err := r.once(log, func() (func() error, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("one that does not start: %v", err)
	}
	if err := r.once(log, start); err != nil || started != 2 {
		t.Errorf("after both: %v, %d started", err, started)
	}
	end <- nil
	r.wg.Wait()
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An upgrade may move the old program aside before it puts the new one in its place, or remove it, or write over it by a
// rename: what is started is what is at the place that this process was started from.
func TestReplace_StartsWhatIsAtItsPlace(t *testing.T) {
	if os.Getenv("BAILIWICK_TEST_REPLACES") != "" {
		fmt.Println("started")
		io.Copy(io.Discard, os.Stdin)
		ended, err := replace(slog.New(slog.DiscardHandler))
		if err == nil {
			err = ended()
		}
		fmt.Println(err)
		os.Exit(0)
	}
	at := filepath.Join(t.TempDir(), "edge")
	if err := os.Link(os.Args[0], at); err != nil {
		t.Skip(err) // another file system
	}
	old := exec.Command(at, "-test.run=^TestReplace_StartsWhatIsAtItsPlace$")
	old.Env = append(os.Environ(), "BAILIWICK_TEST_REPLACES=1")
	in, err := old.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := old.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	err = errors.Join(os.Rename(at, at+".old"), os.WriteFile(at, []byte("#!/bin/sh\necho the new one: $*\n"), 0o755))
	if err := errors.Join(err, in.Close()); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if said := lines.Text(); !strings.HasPrefix(said, "the new one: -takeover ") {
		t.Errorf("what was started says %q", said)
	}
	io.Copy(io.Discard, out)
	if err := old.Wait(); err != nil {
		t.Error(err)
	}
}

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

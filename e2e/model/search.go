package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

//go:embed *.pml
var models embed.FS

// Limits of one search.
const (
	maxMiB  = 2048
	maxTime = 8 * time.Minute
)

// What a search is expected to find.
const (
	holds   = "holds"   // all states searched, nothing found
	breaks  = "breaks"  // a guard is missing: an assertion of the border fails
	reaches = "reaches" // the state that is asked for can be reached
)

// search is one model under one set of defines.
type search struct {
	Name    string
	Model   string // border or hop
	Defines []string
	Want    string
	Why     string // the line of code that the guard stands for, or what is reached
	Long    bool   // not in the smoke
}

// result of a search.
type result struct {
	States int64
	MiB    int64
	Took   time.Duration
	Failed string // the assertion, "" if none
	Whole  bool   // every state was visited
	Steps  string // how it came to that, if asked for
}

// lacks says what this machine does not have; "": nothing.
func lacks() string {
	for _, program := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			return "the models of the border need " + program + " (Debian: apt-get install spin gcc libc6-dev)"
		}
	}
	return ""
}

var (
	failedText = regexp.MustCompile(`pan:1: assertion violated (.*?)(?: \(at depth \d+\))?\n`)
	statesText = regexp.MustCompile(`(?m)^\s*(\d+) states, stored`)
	memoryText = regexp.MustCompile(`(?m)^\s*([0-9.]+)\s+total actual memory usage`)
)

// search makes a program of the model and runs it: breadth first, so that what it finds is a shortest way there.
func (s search) search(ctx context.Context, show bool) (result, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "bailiwick-model-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	file := s.Model + ".pml"
	text, err := models.ReadFile(file)
	if err != nil {
		return result{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
		return result{}, err
	}
	do := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if ctx.Err() != nil {
			return "", fmt.Errorf("%s is not done after %s", name, time.Since(began).Round(time.Second))
		}
		return string(out), err
	}
	optimize := "-O0" // most are found sooner than an optimizer ends
	if s.Want == holds {
		optimize = "-O1"
	}
	if out, err := do("spin", append(append([]string{"-a"}, s.Defines...), file)...); err != nil || bytes.Contains([]byte(out), []byte("Error")) {
		return result{}, fmt.Errorf("spin does not read %s: %v: %s", file, err, out)
	}
	if out, err := do("gcc", optimize, "-w", "-DSAFETY", "-DNOFAIR", "-DNOREDUCE", "-DBFS", "-DCOLLAPSE", "-DMEMLIM="+strconv.Itoa(maxMiB), "-o", "pan", "pan.c"); err != nil {
		return result{}, fmt.Errorf("gcc does not build %s: %w: %s", file, err, out)
	}
	out, err := do(filepath.Join(dir, "pan"), "-n", "-w22")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return result{}, err
	}
	r := result{Took: time.Since(began)}
	if m := failedText.FindStringSubmatch(out); m != nil {
		r.Failed = m[1]
	}
	m := statesText.FindStringSubmatch(out)
	if m == nil || strings.Contains(out, "out of memory") || strings.Contains(out, "MEMLIM bound") {
		return r, fmt.Errorf("the search ended before its time: %.400s", out)
	}
	r.States, _ = strconv.ParseInt(m[1], 10, 64)
	if m := memoryText.FindStringSubmatch(out); m != nil {
		mib, _ := strconv.ParseFloat(m[1], 64)
		r.MiB = int64(mib)
	}
	r.Whole = strings.Contains(out, "errors: 0") && !strings.Contains(out, "Search not completed") && err == nil
	if show && r.Failed != "" {
		if r.Steps, err = do("spin", append(append([]string{"-t", "-p", "-g"}, s.Defines...), file)...); err != nil {
			return r, fmt.Errorf("spin does not play back what was found: %w: %s", err, r.Steps)
		}
	}
	return r, nil
}

// asked is the assertion that stands for a state that is asked for.
const asked = "0"

// judge says what is not as it was expected.
func (s search) judge(r result) error {
	switch {
	case s.Want == holds && r.Failed != "":
		return fmt.Errorf("%s can fail; -run '^%s$' -show prints how", r.Failed, s.Name)
	case s.Want == holds && !r.Whole:
		return errors.New("not every state was visited")
	case s.Want == holds || s.Want == reaches && r.Failed == asked:
		return nil
	case s.Want == reaches:
		return fmt.Errorf("it is never reached (failed: %q)", r.Failed)
	case r.Failed == "":
		return errors.New("nothing breaks although the guard is missing")
	case r.Failed == asked:
		return errors.New("it stopped at a state that nobody asked for")
	}
	return nil
}

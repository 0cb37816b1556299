// Command mutants seeds border bugs, one at a time, and sees that a check catches each.
//
// It owns the list of bugs (the *_bugs.go files): each is an edit of production code at the very place where the
// mistake would be made, and the checks that must fail with it. A bug is built by go's -overlay: the go tool
// reads an edited copy instead of the file, so production code holds no switch, and any build can have any bug:
//
//	go run ./e2e/mutants                       every bug; fails when one survives (make mutants)
//	go run ./e2e/mutants -run 'grant|ticket'   those whose names match
//	go run ./e2e/mutants -list                 the table, as text
//	go build -overlay $(go run ./e2e/mutants -overlay sender-remembers-table) ./dataplane/cmd/bailiwick-edge
//
// An edit whose text is not in its file exactly as often as it says is an error, not a skipped bug. It must be run
// inside the module, changes no file of it, and keeps nothing but the overlays that -overlay asks for.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/e2e/mutants/overlay"
)

// bug is one seeded mistake.
type bug struct {
	name   string
	breaks string // what promise, in one line
	edits  []edit
	checks []check // each of them must fail with the bug; the first is run by the smoke

	// harmless: the line only makes code more careful than it must be, and without it each check must pass: see DESIGN.md.
	harmless bool
}

// edit replaces old, which stands in file exactly once.
type edit struct{ file, old, new string }

// atOnce is how many bugs are built and run at the same time: half of what a check takes is waiting.
const atOnce = 2

// patience is how long a check may take: it is stopped then, and has caught nothing.
const patience = 4 * time.Minute

// check is a test of a package.
type check struct{ pkg, test string }

func (c check) String() string { return c.pkg + " " + c.test }

func bugs() []bug {
	return slices.Concat(rulesBugs, controlBugs, edgeBugs, reviewedBugs, twinBugs, wordBugs, secondBugs, streamBugs, engineBugs, loopBugs, unseenBugs, headBugs, callerBugs, leavingBugs, lingeringBugs, relayingBugs, queueBugs)
}

func main() {
	run := flag.String("run", "", "only bugs whose names match this regular expression")
	list := flag.Bool("list", false, "print the table")
	only := flag.String("overlay", "", "write the overlay of this bug to a temporary directory and print its path")
	flag.Parse()
	if err := work(*run, *only, *list); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func work(pattern, only string, list bool) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	match, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	var chosen []bug
	for _, b := range bugs() {
		switch {
		case list:
			fmt.Printf("%-32s %s\n", b.name, b.breaks)
			by := "caught by"
			if b.harmless {
				by = "harmless by"
			}
			for _, c := range b.checks {
				fmt.Printf("%-32s   %s %s\n", "", by, c)
			}
		case b.name == only:
			dir, err := os.MkdirTemp("", "mutant-"+b.name+"-")
			if err != nil {
				return err
			}
			path, err := b.overlay(root, dir)
			if err != nil {
				return err
			}
			fmt.Println(path)
			return nil
		case match.MatchString(b.name):
			chosen = append(chosen, b)
		}
	}
	switch {
	case list:
		return nil
	case only != "":
		return fmt.Errorf("there is no bug %q; -list names them", only)
	case len(chosen) == 0:
		return fmt.Errorf("no bug matches %q; -list names them", pattern)
	}
	if err := sound(root, chosen); err != nil {
		return err
	}
	var mu sync.Mutex // covers survived and next, and keeps lines whole
	var survived []string
	next := 0
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(chosen) {
					return
				}
				b, start := chosen[i], time.Now()
				err := b.caught(root, b.checks)
				verdict := "caught"
				if b.harmless {
					verdict = "harmless"
				}
				mu.Lock()
				if err != nil {
					verdict = err.Error()
					survived = append(survived, b.name)
				}
				fmt.Printf("%2d/%d %-32s %5.1fs %s\n", i+1, len(chosen), b.name, time.Since(start).Seconds(), verdict)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(survived) > 0 {
		return fmt.Errorf("%d of %d survived: %s", len(survived), len(chosen), strings.Join(survived, ", "))
	}
	fmt.Printf("all %d as they should be\n", len(chosen))
	return nil
}

// sound runs the checks without any bug: a test that fails anyway catches nothing.
func sound(root string, chosen []bug) error {
	tests, order := map[string]map[string]bool{}, []string{}
	for _, b := range chosen {
		for _, c := range b.checks {
			if tests[c.pkg] == nil {
				tests[c.pkg] = map[string]bool{}
				order = append(order, c.pkg)
			}
			tests[c.pkg][c.test] = true
		}
	}
	for _, pkg := range order {
		var names []string
		for name := range tests[pkg] {
			names = append(names, name)
		}
		out, err := test(root, "", check{pkg, "^(" + strings.Join(names, "|") + ")$"})
		if err != nil {
			return fmt.Errorf("the checks of %s fail without any bug: %w\n%s", pkg, err, tail(out))
		}
		for _, name := range names {
			if !strings.HasSuffix(name, ".*") && !bytes.Contains(out, []byte("=== RUN   "+name+"\n")) {
				return fmt.Errorf("%s has no test %s", pkg, name)
			}
		}
	}
	return nil
}

// caught is nil if every check fails with the bug; of a harmless one, if every check passes.
func (b bug) caught(root string, checks []check) error {
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := b.overlay(root, dir)
	if err != nil {
		return err
	}
	for _, c := range checks {
		out, err := test(root, overlay, check{c.pkg, "^" + c.test + "$"})
		switch {
		case bytes.Contains(out, []byte("[build failed]")), bytes.Contains(out, []byte("[setup failed]")):
			return fmt.Errorf("does not build:\n%s", tail(out))
		case bytes.Contains(out, []byte("panic: test timed out")): // a busy machine does that as well as a bug
			return fmt.Errorf("%s did not end in %v", c, patience)
		case b.harmless && err != nil:
			return fmt.Errorf("NOT HARMLESS by %s: %w\n%s", c, err, tail(out))
		case b.harmless:
		case err == nil:
			return fmt.Errorf("SURVIVED %s", c)
		case !bytes.Contains(out, []byte("--- FAIL")) && !bytes.Contains(out, []byte("panic:")):
			return fmt.Errorf("%s ended without a verdict: %w\n%s", c, err, tail(out))
		}
	}
	return nil
}

func test(root, overlay string, c check) ([]byte, error) {
	args := []string{"test", "-count=1", "-timeout=" + patience.String(), "-v", "-run", c.test}
	if c.pkg == simulatePkg {
		args = append(args, "-short") // some thousand schedules, and not a hundred thousand: a bug of the cores is found in them
	}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./"+c.pkg)...)
	cmd.Dir = root
	return cmd.CombinedOutput()
}

// overlay writes the edited files and go's overlay over them.
func (b bug) overlay(root, dir string) (string, error) {
	var edits []overlay.Edit
	for _, e := range b.edits {
		edits = append(edits, overlay.Edit{File: e.file, Old: e.old, New: e.new})
	}
	path, err := overlay.Write(root, dir, edits)
	if err != nil {
		return "", fmt.Errorf("bug %s: %w", b.name, err)
	}
	return path, nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for the module: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", errors.New("run it inside the module")
	}
	return filepath.Dir(mod), nil
}

func tail(out []byte) []byte { return out[max(0, len(out)-1500):] }

// Command hosts proves the border on the wire: it runs an installation of two zones, each with two serving regions, on
// hosts in network namespaces of their own, plants secrets in one zone, and looks for them in all that the other zone
// has stored and received.
//
//	go run ./e2e/hosts                        the clean build under faults, then each leaking build (make hosts)
//	go run ./e2e/hosts -only clean -faults 40 the clean build alone
//	go run ./e2e/hosts -only key-logged       one leaking build; -list names them
//
// The clean build must leak nothing, and every deliberately leaking build must be found: see DESIGN.md. It needs Linux,
// the right to make namespaces, the nft program, and the go tool: it builds the programs for itself. It owns the
// processes that it starts and a temporary directory; nothing else survives it. Status 1: something crossed, a leak was
// not found, or the run would not have proved anything.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"bailiwick/e2e/netlab"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "hosts:", err)
		os.Exit(1)
	}
}

// clean is the name of the build that is not edited.
const clean = "clean"

func run(args []string, out io.Writer) error {
	o, only, list := settings{}, "", false
	flags := flag.NewFlagSet("hosts", flag.ContinueOnError)
	flags.Uint64Var(&o.seed, "seed", 0, "of all choices; 0: one of its own, which is printed")
	flags.StringVar(&only, "only", "", "regular expression of builds to run, clean or leaking; empty: all")
	flags.BoolVar(&list, "list", false, "name the leaking builds")
	flags.IntVar(&o.faults, "faults", 12, "faults that the clean build is put through")
	flags.DurationVar(&o.quiet, "quiet", 4*time.Second, "of traffic before the faults")
	flags.StringVar(&o.bin, "bin", "", "directory of programs for the clean build, whose connections then stay shut; empty: they are built so that captures can be read")
	flags.StringVar(&o.keep, "keep", "", "directory to leave disks, captures and reports in; empty: none")
	flags.StringVar(&o.leak, "inside", "", "run this build here; the program says that to itself")
	flags.StringVar(&o.report, "report", "", "file for the report; likewise")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if list {
		for _, l := range leaks {
			fmt.Fprintf(out, "%-28s %s\n", l.name, l.crosses)
		}
		return nil
	}
	if o.leak != "" && netlab.Inside() {
		r, err := inside(context.Background(), o, out)
		if err != nil {
			return err
		}
		raw, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(o.report, raw, 0o600)
	}
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	fmt.Fprintf(out, "seed %d\n", o.seed)
	return all(o, match, out)
}

// all runs the builds that match, one after another.
func all(o settings, match *regexp.Regexp, out io.Writer) error {
	work, err := os.MkdirTemp("", "bailiwick-hosts-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b, err := newBuilder(work, o.bin)
	if err != nil {
		return err
	}
	var failed []string
	ran := 0
	for _, l := range append([]leak{{name: clean}}, leaks...) {
		if !match.MatchString(l.name) {
			continue
		}
		ran++
		bin, err := b.build(l)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s: %s\n", l.name, l.crosses)
		r, err := one(o, l.name, bin, out)
		if errors.Is(err, errNoHosts) {
			return err
		}
		if err != nil {
			failed = append(failed, l.name)
			fmt.Fprintf(out, "  FAILED: %v\n", err)
		} else if verdict := l.judge(r); verdict != "" {
			failed = append(failed, l.name)
			fmt.Fprintf(out, "  FAILED: %s\n", verdict)
		} else if l.name == clean {
			fmt.Fprintf(out, "  nothing crossed\n")
		} else {
			fmt.Fprintf(out, "  found, by %d findings\n", len(r.Findings))
			for _, f := range r.Findings[:min(3, len(r.Findings))] {
				fmt.Fprintf(out, "    %s\n", f)
			}
		}
	}
	switch {
	case ran == 0:
		return fmt.Errorf("no build matches; they are %s and those that -list names", clean)
	case len(failed) > 0:
		return fmt.Errorf("%d of %d builds failed: %s", len(failed), ran, strings.Join(failed, ", "))
	}
	fmt.Fprintf(out, "\nseed %d: %d builds, each as it should be\n", o.seed, ran)
	return nil
}

// judge says what is wrong with a run of a build; "": nothing.
func (l leak) judge(r *report) string {
	if l.name == clean {
		if bad := append(r.Findings, r.Problems...); len(bad) > 0 {
			return strings.Join(bad, "\n          ")
		}
		return ""
	}
	for _, want := range l.want {
		found := false
		for _, f := range r.Findings {
			found = found || regexp.MustCompile(want).MatchString(f)
		}
		if !found {
			return fmt.Sprintf("no finding matches %q; found is\n          %s", want, strings.Join(r.Findings, "\n          "))
		}
	}
	return ""
}

// errNoHosts says that namespaces cannot be made here.
var errNoHosts = errors.New("no network namespaces here")

// one runs one build in a namespace of its own.
func one(o settings, name, bin string, out io.Writer) (*report, error) {
	dir := filepath.Dir(bin)
	file := filepath.Join(dir, "report.json")
	args := []string{"-inside", name, "-report", file, "-bin", bin, "-seed", fmt.Sprint(o.seed), "-quiet", o.quiet.String()}
	if name == clean {
		args = append(args, "-faults", fmt.Sprint(o.faults))
	} else {
		args = append(args, "-faults", "0")
	}
	if o.keep != "" {
		args = append(args, "-keep", filepath.Join(o.keep, name))
	}
	cmd := netlab.Command(args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoHosts, err)
	}
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 1 {
			err = errors.New("it ended without a verdict; see above")
		}
		return nil, err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &report{}
	return r, json.Unmarshal(raw, r)
}

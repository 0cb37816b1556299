package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// Apart starts the daemons under user ids of their own, so that packets can be lost by who sends them (netlab),
// and under strace where a fault wants that. It is a directory of programs, for Options.Bin: scripts that turn
// into the real ones, in the same process. Its methods may be called at once.
type Apart struct {
	Bin string // for Options.Bin
	dir string

	mu   sync.Mutex // covers uids
	uids map[string]int
}

// Strace says why fsyncs cannot be made to fail here; nil: they can.
func Strace() error {
	_, err := exec.LookPath("strace")
	return err
}

// NewApart makes the scripts. The error says why user ids cannot be told apart here: it needs root and setpriv.
func NewApart(t T) (*Apart, error) {
	t.Helper()
	if err := exec.Command("setpriv", "--reuid", "20001", "--clear-groups", "true").Run(); err != nil {
		return nil, fmt.Errorf("take another user id: %w", err)
	}
	a := &Apart{dir: t.TempDir(), uids: map[string]int{}}
	a.Bin = filepath.Join(a.dir, "bin")
	real := filepath.Join(Root(t), "bin")
	var errs []error
	for _, d := range []string{"", "bin", "uid", "strace"} {
		errs = append(errs, os.MkdirAll(filepath.Join(a.dir, d), 0o755), os.Chmod(filepath.Join(a.dir, d), 0o755))
	}
	errs = append(errs, os.Symlink(filepath.Join(real, "bailiwick"), filepath.Join(a.Bin, "bailiwick")))
	for _, name := range []string{"bailiwick-control", "bailiwick-edge"} {
		script := `#!/bin/sh
name= prev=
for a in "$@"; do
	if [ "$prev" = -dir ]; then name=${a##*/}; fi
	prev=$a
done
here='` + a.dir + `' real='` + filepath.Join(real, name) + `'
[ -f "$here/uid/$name" ] || exec "$real" "$@"
set -- setpriv --reuid "$(cat "$here/uid/$name")" --clear-groups --inh-caps +dac_override,+fowner,+chown --ambient-caps +dac_override,+fowner,+chown -- "$real" "$@"
[ -f "$here/strace/$name" ] && set -- strace -D -f --seccomp-bpf -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:error=EIO:when="$(cat "$here/strace/$name")"+ "$@"
exec "$@"
`
		errs = append(errs, os.WriteFile(filepath.Join(a.Bin, name), []byte(script), 0o755))
	}
	for _, name := range []string{"emea-1", "emea-2", "emea-3", "us-1", "us-2", "us-3", "eu-west-edge-1", "eu-central-edge-1", "us-east-edge-1", "us-west-edge-1"} {
		a.UID(name)
	}
	return a, errors.Join(errs...)
}

// UID of the process whose data directory has this name, from its next start on.
func (a *Apart) UID(name string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uids[name] == 0 {
		n := 20001 + len(a.uids)
		if err := os.WriteFile(filepath.Join(a.dir, "uid", name), fmt.Append(nil, n), 0o644); err != nil {
			return -1 // matches nothing: the fault will not happen, and its test will say so
		}
		a.uids[name] = n
	}
	return a.uids[name]
}

// FailFsync makes every fsync of a process fail from the given one on, counted in each thread, once it is started
// again; 0 ends that.
func (a *Apart) FailFsync(name string, from int) error {
	file := filepath.Join(a.dir, "strace", name)
	if from == 0 {
		return os.Remove(file)
	}
	return os.WriteFile(file, fmt.Append(nil, from), 0o644)
}

// PeerPort of a control node: tables, usage, quotas and raft all come in there.
func (s *Sandbox) PeerPort(control string) int {
	for i, c := range s.Controls {
		if c.Name == control {
			return s.Base + 101 + i
		}
	}
	return 0
}

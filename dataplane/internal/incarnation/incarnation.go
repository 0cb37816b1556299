// Package incarnation owns which run of an edge a process is, and which earlier runs it knows to have ended.
//
// A run is a random number that this process alone has: it is drawn at every start, and what is written of it to disk
// serves to say of the *next* start whether this run is over. So two machines that run from copies of one disk are two
// runs, and the zone's leader counts what each of them holds by itself. It never says that a run has ended which may
// go on elsewhere: only of one that wrote that it ended, or that held the lock of this very directory under this very
// boot of the machine. After a crash of the process the next start knows it; after one of the machine it does not,
// and what the run before held lapses by time. A Run never changes but by End; one goroutine calls that.
package incarnation

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"bailiwick/regions/grant"
	"bailiwick/shared/durable"
)

// Run is one run of an edge.
type Run struct {
	ID   string
	Dead []string // earlier runs that have ended, the latest first, at most grant.MaxDead

	path string
	lock *os.File // held until the process ends, by whatever means
	self note
}

// note is what a run leaves to the next. Place and boot together name one lock: a copy of the directory is another
// place, and a copy of the machine another boot.
type note struct {
	ID    string   `json:"id"`
	Dead  []string `json:"dead,omitempty"`
	Ended bool     `json:"ended,omitempty"`
	Boot  string   `json:"boot,omitempty"`
	Dev   uint64   `json:"dev,omitempty"`
	Inode uint64   `json:"inode,omitempty"`
}

// Begin draws a run in a directory that no other process may use meanwhile. boot names the present boot of the machine;
// "": it is not known, and nothing is concluded from the lock. What cannot be read or written of the note costs only
// what it would have proved.
func Begin(dir, boot string, log *slog.Logger) (*Run, error) {
	if err := os.MkdirAll(dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("begin a run of the edge: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, durable.FilePerm)
	if err != nil {
		return nil, fmt.Errorf("begin a run of the edge: %w", err)
	}
	var place unix.Stat_t
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = unix.Fstat(int(lock.Fd()), &place)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("begin a run of the edge in %s, which another process may hold: %w", dir, err)
	}
	var b [8]byte
	rand.Read(b[:])
	r := &Run{ID: hex.EncodeToString(b[:]), path: filepath.Join(dir, "run.json"), lock: lock}
	r.self = note{ID: r.ID, Boot: boot, Dev: uint64(place.Dev), Inode: place.Ino}
	last, err := r.read()
	if err != nil {
		log.Warn("what the last run of this edge left cannot be read: what it held lapses by time", "error", err)
	}
	if last.ID != "" && (last.Ended || boot != "" && last.Boot == boot && last.Dev == r.self.Dev && last.Inode == r.self.Inode) {
		r.Dead = append(r.Dead, last.ID)
	}
	r.Dead = append(r.Dead, last.Dead...)
	r.Dead = r.Dead[:min(len(r.Dead), grant.MaxDead)]
	r.self.Dead = r.Dead
	if err := r.write(); err != nil {
		log.Warn("this run of the edge cannot be written down: what it holds when it ends will lapse by time", "error", err)
	}
	return r, nil
}

// End writes that the run is over, which is true of it wherever its disk is copied to. Nothing of it may go on.
func (r *Run) End() error {
	r.self.Ended = true
	err := r.write()
	return errors.Join(err, r.lock.Close())
}

func (r *Run) read() (n note, err error) {
	raw, err := durable.ReadFile(durable.OS(), r.path, 1<<16)
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &n)
	}
	if err == nil && (!(grant.Process{Incarnation: n.ID}).Reads(n.Dead) || slices.Contains(n.Dead, "")) {
		err = errors.New("it names runs that cannot be")
	}
	if err != nil {
		return note{}, fmt.Errorf("read %s: %w", r.path, err)
	}
	return n, nil
}

func (r *Run) write() error {
	raw, err := json.Marshal(r.self)
	if err != nil {
		return err
	}
	return durable.WriteFileAtomic(durable.OS(), r.path, raw, durable.FilePerm)
}

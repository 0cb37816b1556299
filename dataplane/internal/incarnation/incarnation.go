// Package incarnation owns which run of an edge a process is, and which earlier runs it knows to have ended.
//
// A run is a random number that this process alone has: it is drawn at every start, and what is written of it to disk
// serves to say of the *next* start whether this run is over. So two machines that run from copies of one disk are two
// runs, and the zone's leader counts what each of them holds by itself. It never says that a run has ended which may
// go on elsewhere: only of one that wrote that it ended, or that held the lock of this very directory under this very
// boot of the machine. After a crash of the process the next start knows it; after one of the machine it does not,
// and what the run before held lapses by time. A run whose process goes on beside the next one, with relays that rest on it, holds a
// lock of its own meanwhile (Stay), and is not over for anybody who can look at that one (Look). Dead and Look may be called by any
// goroutine, the rest by one.
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
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"bailiwick/regions/grant"
	"bailiwick/shared/durable"
)

const (
	noteFile   = "run.json"
	stayPrefix = "stays-"
)

// Run is one run of an edge.
type Run struct {
	ID string

	dir  string
	lock *os.File // held until the process ends, by whatever means
	log  *slog.Logger

	mu   sync.Mutex // covers self
	self note
}

// note is what a run leaves to the next. Place and boot together name one lock: a copy of the directory is another
// place, and a copy of the machine another boot.
type note struct {
	ID    string   `json:"id"`
	Dead  []string `json:"dead,omitempty"` // runs that have ended, the latest first, at most grant.MaxDead
	Stay  []string `json:"stay,omitempty"` // earlier ones that had not: their locks were held; as many at most
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
	r := &Run{ID: hex.EncodeToString(b[:]), dir: dir, lock: lock, log: log}
	r.self = note{ID: r.ID, Boot: boot, Dev: uint64(place.Dev), Inode: place.Ino}
	last, err := r.read()
	if err != nil {
		log.Warn("what the last run of this edge left cannot be read: what it held lapses by time", "error", err)
	}
	here := boot != "" && last.Boot == boot && last.Dev == r.self.Dev && last.Inode == r.self.Inode
	var earlier []string
	switch {
	case last.ID == "":
	case last.Ended:
		r.self.Dead = append(r.self.Dead, last.ID)
	case here:
		earlier = append(earlier, last.ID)
	}
	if here { // of another place nobody's lock can be looked at from here
		earlier = append(earlier, last.Stay...)
	}
	for _, id := range earlier {
		if r.stays(id) {
			r.self.Stay = append(r.self.Stay, id)
		} else {
			r.self.Dead = append(r.self.Dead, id)
		}
	}
	r.self.Dead = append(r.self.Dead, last.Dead...)
	r.self.Dead = r.self.Dead[:min(len(r.self.Dead), grant.MaxDead)]
	r.self.Stay = r.self.Stay[:min(len(r.self.Stay), grant.MaxDead)]
	r.tidy()
	if err := r.write(); err != nil {
		log.Warn("this run of the edge cannot be written down: what it holds when it ends will lapse by time", "error", err)
	}
	return r, nil
}

// Dead are earlier runs that have ended, the latest first.
func (r *Run) Dead() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.self.Dead
}

// Stays says whether any earlier run had not ended when last looked at.
func (r *Run) Stays() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.self.Stay) > 0
}

// Look looks whether earlier runs that had not ended have now, and says whether one has.
func (r *Run) Look() (ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var stay, dead []string
	for _, id := range r.self.Stay {
		if r.stays(id) {
			stay = append(stay, id)
		} else {
			dead = append(dead, id)
		}
	}
	if len(dead) == 0 {
		return false
	}
	r.self.Stay, r.self.Dead = stay, append(dead, r.self.Dead...)
	r.self.Dead = r.self.Dead[:min(len(r.self.Dead), grant.MaxDead)]
	if err := r.write(); err != nil {
		r.log.Warn("that an earlier run of this edge has ended cannot be written down", "error", err)
	}
	return true
}

// Stay keeps the run from being over when it lets go of the directory, for as long as this process lives and has not called over:
// whoever begins next finds its lock. Call it before Leave.
func (r *Run) Stay() (over func(), err error) {
	path := r.staying(r.ID)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, durable.FilePerm)
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return sync.OnceFunc(func() {
				os.Remove(path)
				lock.Close()
			}), nil
		}
		lock.Close()
	}
	return nil, fmt.Errorf("let a run of the edge go on: %w", err)
}

// Leave lets go of the directory, and says nothing of whether the run is over.
func (r *Run) Leave() error { return r.lock.Close() }

// stays says whether the process of an earlier run holds the lock of Stay. What cannot be looked at may be held.
func (r *Run) stays(id string) bool {
	lock, err := os.Open(r.staying(id))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return true
	}
	os.Remove(lock.Name()) // its process was killed
	return false
}

// tidy removes the locks of processes that are gone, which a reboot leaves.
func (r *Run) tidy() {
	files, _ := filepath.Glob(r.staying("*"))
	for _, file := range files {
		r.stays(strings.TrimPrefix(filepath.Base(file), stayPrefix))
	}
}

func (r *Run) staying(id string) string { return filepath.Join(r.dir, stayPrefix+id) }

// End writes that the run is over, which is true of it wherever its disk is copied to. Nothing of it may go on.
func (r *Run) End() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.self.Ended = true
	err := r.write()
	return errors.Join(err, r.lock.Close())
}

func (r *Run) read() (n note, err error) {
	raw, err := durable.ReadFile(durable.OS(), filepath.Join(r.dir, noteFile), 1<<16)
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &n)
	}
	if p := (grant.Process{Incarnation: n.ID}); err == nil && (!p.Reads(n.Dead) || !p.Reads(n.Stay) || slices.Contains(n.Dead, "") || slices.Contains(n.Stay, "")) {
		err = errors.New("it names runs that cannot be")
	}
	if err != nil {
		return note{}, fmt.Errorf("read %s: %w", filepath.Join(r.dir, noteFile), err)
	}
	return n, nil
}

func (r *Run) write() error {
	raw, err := json.Marshal(r.self)
	if err != nil {
		return err
	}
	return durable.WriteFileAtomic(durable.OS(), filepath.Join(r.dir, noteFile), raw, durable.FilePerm)
}

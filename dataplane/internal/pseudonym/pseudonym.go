// Package pseudonym owns the keys under which an edge makes pseudonyms of client
// addresses: one random key a day (UTC), of this edge alone.
//
// A key never leaves the edge and is destroyed when its day is over, at the next
// start where the edge was down then: from then on nobody, we included, can tell
// which address a pseudonym was, nor whether two of different days are the same.
// After a crash the day's key is found again. Of may be called at once and does
// no I/O; Run keeps the keys ahead of the clock.
package pseudonym

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"bailiwick/shared/durable"
)

// Config describes Keys.
type Config struct {
	Dir    string           // required
	FS     durable.FS       // nil: the disk
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: none
}

// Keys are those of today and tomorrow.
type Keys struct {
	cfg Config
	cur atomic.Pointer[pair]
}

// pair is the file's content too: day u64, two keys.
type pair struct {
	day  int64
	keys [2][32]byte
}

var header = durable.Header{Magic: "bwpseudo", Version: 1, Program: "bailiwick-edge"}

// Open reads the keys that still hold and makes those that are missing. A file
// that is damaged is replaced: the day's pseudonyms begin anew.
func Open(cfg Config) (*Keys, error) {
	if cfg.Dir == "" {
		return nil, errors.New("pseudonym config: Dir is required")
	}
	if cfg.FS == nil {
		cfg.FS = durable.OS()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keys{cfg: cfg}
	if err := cfg.FS.MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("open pseudonym keys: %w", err)
	}
	b, _, err := durable.ReadSealed(cfg.FS, k.path(), header, 1<<10)
	switch {
	case err == nil && len(b) == 72:
		p := &pair{day: int64(binary.BigEndian.Uint64(b))}
		copy(p.keys[0][:], b[8:])
		copy(p.keys[1][:], b[40:])
		k.cur.Store(p)
	case errors.Is(err, durable.ErrNewer):
		return nil, err
	case !errors.Is(err, fs.ErrNotExist):
		cfg.Logger.Warn("pseudonym keys are damaged: new ones are made", "error", err)
	}
	if err := k.turn(); err != nil {
		return nil, fmt.Errorf("open pseudonym keys: %w", err)
	}
	return k, nil
}

func (k *Keys) path() string { return filepath.Join(k.cfg.Dir, "address.keys") }

func dayOf(t time.Time) int64 { return t.Unix() / 86400 }

// turn makes today's and tomorrow's keys the ones on disk. The ones before are
// overwritten by a rename: what a disk keeps of a removed file is the disk's.
func (k *Keys) turn() error {
	today := dayOf(k.cfg.Now())
	old := k.cur.Load()
	if old != nil && old.day == today {
		return nil
	}
	p := &pair{day: today}
	rand.Read(p.keys[0][:])
	rand.Read(p.keys[1][:])
	if old != nil && old.day+1 == today {
		p.keys[0] = old.keys[1]
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(p.day))
	b = append(append(b, p.keys[0][:]...), p.keys[1][:]...)
	if err := durable.WriteSealed(k.cfg.FS, k.path(), header, b); err != nil {
		return err
	}
	k.cur.Store(p)
	return nil
}

// Run changes keys until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := k.turn(); err != nil {
				k.cfg.Logger.Error("change pseudonym keys: yesterday's is still on disk", "error", err)
			}
		}
	}
}

// Of is the pseudonym of an address on the day of now: the first 64 bits of its
// HMAC-SHA-256 (RFC 2104) under the day's key. 0, not kept, when there is no key
// for the day. It does not allocate.
func (k *Keys) Of(address string, now time.Time) uint64 {
	p := k.cur.Load()
	n := dayOf(now) - p.day
	if n < 0 || n > 1 || len(address) > 64 {
		return 0
	}
	var inner [64 + 64]byte
	var outer [64 + 32]byte
	for i := range 64 {
		inner[i], outer[i] = 0x36, 0x5c
	}
	for i, b := range p.keys[n] {
		inner[i] ^= b
		outer[i] ^= b
	}
	sum := sha256.Sum256(inner[:64+copy(inner[64:], address)])
	copy(outer[64:], sum[:])
	sum = sha256.Sum256(outer[:])
	return binary.BigEndian.Uint64(sum[:])
}

package edgetls

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"

	"bailiwick/shared/durable"
)

// box seals values under the zone's key, bound to the name they are kept under:
// a control node or a thief of a disk can neither read nor exchange them. All
// values are sealed, not only keys: nothing has to know which are secret.
type box struct{ aead cipher.AEAD }

var boxMark = []byte("bws1")

func newBox(key []byte) (box, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return box{}, fmt.Errorf("make the seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return box{aead}, err
}

func (b box) seal(name string, value []byte) []byte {
	return b.aead.Seal(bytes.Clone(boxMark), nil, value, []byte(name))
}

func (b box) open(name string, sealed []byte) ([]byte, error) {
	text, ok := bytes.CutPrefix(sealed, boxMark)
	if !ok {
		return nil, fmt.Errorf("open %s: not a sealed value", name)
	}
	value, err := b.aead.Open(nil, nil, text, []byte(name))
	if err != nil {
		return nil, fmt.Errorf("open %s: not sealed under this zone's key and name", name)
	}
	return value, nil
}

// local is this edge's disk, sealed like the shelf. certmagic reads it first
// and keeps it up to date; it takes no locks here.
type local struct {
	fs  durable.FS
	dir string
	box box
	mu  sync.Mutex // one change at a time: writers of one file would share its temporary name
}

var (
	_           certmagic.Storage = (*local)(nil)
	localHeader                   = durable.Header{Magic: "bwcert", Version: 1, Program: "bailiwick-edge"}
)

func (l *local) path(key string) (string, error) {
	if !filepath.IsLocal(key) || strings.ContainsRune(key, '\\') {
		return "", fmt.Errorf("certificate file %q: not a relative path", key)
	}
	return filepath.Join(l.dir, filepath.FromSlash(key)), nil
}

func (l *local) Store(_ context.Context, key string, value []byte) error {
	p, err := l.path(key)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.fs.MkdirAll(filepath.Dir(p), durable.DirPerm); err != nil {
		return fmt.Errorf("make %s: %w", filepath.Dir(p), err)
	}
	return durable.WriteSealed(l.fs, p, localHeader, l.box.seal(key, value))
}

func (l *local) Load(_ context.Context, key string) ([]byte, error) {
	p, err := l.path(key)
	if err != nil {
		return nil, err
	}
	sealed, _, err := durable.ReadSealed(l.fs, p, localHeader, 1<<20)
	if err != nil {
		return nil, err
	}
	return l.box.open(key, sealed)
}

func (l *local) Delete(_ context.Context, key string) error {
	p, err := l.path(key)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remove(p)
}

// remove deletes a file or a directory with all it holds.
func (l *local) remove(p string) error {
	info, err := l.fs.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := l.fs.ReadDir(p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := l.remove(filepath.Join(p, e.Name())); err != nil {
				return err
			}
		}
	}
	return l.fs.Remove(p)
}

func (l *local) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	p, err := l.path(key)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	info, err := l.fs.Stat(p)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key, Modified: info.ModTime(), Size: info.Size(), IsTerminal: !info.IsDir()}, nil
}

func (l *local) Exists(ctx context.Context, key string) bool {
	_, err := l.Stat(ctx, key)
	return err == nil
}

// Listing and locking are never asked of a local cache: they are how edges
// coordinate, which a disk of one edge cannot answer.
func (l *local) List(context.Context, string, bool) ([]string, error) {
	return nil, errors.ErrUnsupported
}
func (l *local) Lock(context.Context, string) error   { return errors.ErrUnsupported }
func (l *local) Unlock(context.Context, string) error { return errors.ErrUnsupported }

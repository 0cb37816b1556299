package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// recheck is how long a client certificate is used before its files are looked at again.
const recheck = time.Minute

// Certs are the client certificates in one directory: NAME.crt and NAME.key. They lie at the edge and nowhere else, since
// the catalog holds no key material. Files are read at a handshake, and again a minute later at the soonest.
type Certs struct {
	dir string

	mu   sync.Mutex // covers held; never held while files are read
	held map[string]heldCert
}

type heldCert struct {
	cert *tls.Certificate
	at   time.Time
}

// NewCerts reads from dir; "" has none.
func NewCerts(dir string) *Certs { return &Certs{dir: dir, held: map[string]heldCert{}} }

// get is the certificate of that name. While its files cannot be read the one read before goes on being used: a renewal
// that is half written must not cut an upstream off.
func (c *Certs) get(name string) (*tls.Certificate, error) {
	if c == nil || c.dir == "" {
		return nil, fmt.Errorf("client certificate %s for upstreams: this edge has no -upstream-certs directory", name)
	}
	c.mu.Lock()
	h, ok := c.held[name]
	c.mu.Unlock()
	if ok && time.Since(h.at) < recheck {
		return h.cert, nil
	}
	cert, err := c.read(name)
	switch {
	case err == nil:
		h = heldCert{cert, time.Now()}
	case ok:
		h.at = time.Now()
	default:
		return nil, fmt.Errorf("client certificate %s for upstreams: %w", name, err)
	}
	c.mu.Lock()
	c.held[name] = h
	c.mu.Unlock()
	return h.cert, nil
}

func (c *Certs) read(name string) (*tls.Certificate, error) {
	root, err := os.OpenRoot(c.dir) // so that a name leads nowhere else
	if err != nil {
		return nil, err
	}
	defer root.Close()
	chain, _, err := load(root, name+".crt")
	if err != nil {
		return nil, err
	}
	key, mode, err := load(root, name+".key")
	if err != nil {
		return nil, err
	}
	if mode&0o007 != 0 {
		return nil, fmt.Errorf("%s.key may be read by everybody (mode %04o): take that away with chmod o-rwx", name, mode.Perm())
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, errors.New(name + ".crt and " + name + ".key do not hold a certificate and its key in PEM")
	}
	return &cert, nil
}

func load(root *os.Root, name string) ([]byte, fs.FileMode, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return data, info.Mode(), err
}

package ledger

import (
	"context"

	pebbledb "github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// OpenOn opens a Machine on a file system of the test's.
func OpenOn(fs vfs.FS, cfg MachineConfig) (*Machine, error) {
	cfg.fs = fs
	return OpenMachine(cfg)
}

// Said is one edge's word, as a command carries it.
type Said = seal

var (
	EncodeAppend = encodeAppend
	EncodeSealed = encodeSealed
	EncodeClose  = encodeClose
	DecodeAcks   = decodeAcks
)

// Sync makes all that was applied durable, as an fsync of each entry would.
func (m *Machine) Sync() error { return m.cur.db.LogData(nil, pebbledb.Sync) }

func (m *Machine) Flush() error { return m.cur.db.Flush() }

func (l *Ledger) FlushSeals(ctx context.Context) error { return l.flushSeals(ctx) }

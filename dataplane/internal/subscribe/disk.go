package subscribe

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/durable"
	"bailiwick/shared/revision"
)

// The table directory holds one generation of three files:
//
//	base-N  the last snapshot, its signed parts as received      sealed (durable.WriteSealed)
//	log-N   the signed updates since, one part a record           durable.Log
//	mark    N and the positions last acked                        sealed, replaced atomically
//
// The mark names the generation: a new base and an empty log are written under N+1 first, then the mark moves,
// then N is removed, so a crash leaves one or the other whole. It also tells a log that was cut at a record's
// end, which no checksum inside the log can. The edge cannot sign, so it cannot fold the log into the base by
// itself: it asks the zone for a snapshot once the log is longer than it is worth.
type disk struct {
	fs         durable.FS
	dir        string
	program    string
	log        *slog.Logger
	stats      *Stats
	maxRecords int

	gen      uint64
	deltas   *durable.Log
	baseSize int64
	records  int
}

type mark struct {
	Gen       uint64            `json:"gen"`
	Catalog   revision.Revision `json:"catalog"`
	Zone      revision.Revision `json:"zone"`
	Confirmed int64             `json:"confirmed"` // unix seconds: when a control node last confirmed the table
	Withdrawn bool              `json:"withdrawn,omitempty"`
}

const (
	markName = "mark"
	refused  = ".refused"
	leastKey = 128      // bytes of a key's object in a base, at least
	foldMin  = 64 << 10 // a log below this is never worth a new base for its length alone
)

func (d *disk) header(magic string) durable.Header {
	return durable.Header{Magic: magic, Version: 1, Program: d.program}
}

func (d *disk) path(kind string, gen uint64) string {
	return filepath.Join(d.dir, kind+"-"+strconv.FormatUint(gen, 10))
}

// load reads the table. Files that do not check out are set aside and there is no table; the mark is returned
// as far as it could be read, since its positions still say what may not be undercut. An error means that a
// newer program wrote the files: they are good, and not to be touched.
func (d *disk) load(open func(*syncv1.Signed) (*part, error)) (*policy.Table, mark, error) {
	var m mark
	path := filepath.Join(d.dir, markName)
	blob, _, err := durable.ReadSealed(d.fs, path, d.header("bwmark"), 1<<20)
	switch {
	case errors.Is(err, durable.ErrNewer):
		return nil, m, err
	case errors.Is(err, fs.ErrNotExist):
		d.refuseOrphans()
		return nil, m, nil
	case err == nil:
		err = json.Unmarshal(blob, &m)
	}
	if err != nil {
		d.refuse(path, err)
		d.refuseOrphans()
		return nil, mark{}, nil
	}
	d.gen = m.Gen
	if m.Withdrawn {
		return nil, m, nil
	}
	held, err := d.loadBase(open)
	if err == nil {
		held, err = d.loadLog(held, m, open)
	}
	if errors.Is(err, durable.ErrNewer) {
		return nil, m, err
	}
	if err != nil {
		d.close()
		return nil, m, nil // loadBase and loadLog have set the file aside
	}
	return held, m, nil
}

func (d *disk) loadBase(open func(*syncv1.Signed) (*part, error)) (*policy.Table, error) {
	path := d.path("base", d.gen)
	blob, _, err := durable.ReadSealed(d.fs, path, d.header("bwbase"), 0)
	if errors.Is(err, durable.ErrNewer) {
		return nil, err
	}
	var held *policy.Table
	if err == nil {
		d.baseSize = int64(len(blob))
		held, err = replayBase(blob, open)
	}
	if err != nil {
		d.refuse(path, err)
	}
	return held, err
}

func replayBase(blob []byte, open func(*syncv1.Signed) (*part, error)) (*policy.Table, error) {
	r := replay{open: open}
	// Signatures are verified and objects read one goroutine ahead of the building: half of the work is on another core.
	type ahead struct {
		*part
		at  int
		err error
	}
	parts, stop := make(chan ahead, 4), make(chan struct{})
	rooms := make(chan []policy.Prepared, cap(parts)+2) // used ones
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(parts)
		for rest := blob; len(rest) > 0; {
			next := ahead{at: len(blob) - len(rest)}
			n, w := binary.Uvarint(rest)
			if w <= 0 || n > uint64(len(rest)-w) {
				next.err, rest = errors.New("it is cut short"), nil
			} else {
				if next.part, next.err = r.read(rest[w : w+int(n)]); next.err == nil {
					var room []policy.Prepared
					select {
					case room = <-rooms:
					default:
					}
					next.expect = min(len(blob)/int(n)*next.count, len(blob)/leastKey)
					next.err = next.prepare(room)
				}
				rest = rest[w+int(n):]
			}
			select {
			case parts <- next:
			case <-stop:
				return
			}
		}
	})
	defer reader.Wait()
	defer close(stop)
	for next := range parts {
		err := next.err
		if err == nil && r.whole {
			err = errors.New("it follows a whole snapshot")
		}
		if err == nil {
			err = r.take(next.part)
		}
		if err != nil {
			return nil, fmt.Errorf("part at byte %d of the content: %w", next.at, err)
		}
		clear(next.objects)
		rooms <- next.objects // there are no more than it holds
	}
	if !r.whole {
		return nil, errors.New("snapshot is not whole")
	}
	return r.held, nil
}

// replay applies signed parts as they were received, with every check but that of age.
type replay struct {
	open   func(*syncv1.Signed) (*part, error)
	held   *policy.Table
	staged *staged
	whole  bool // the last part ended an update
}

func (r *replay) part(raw []byte) error {
	u, err := r.read(raw)
	if err != nil {
		return err
	}
	return r.take(u)
}

func (r *replay) read(raw []byte) (*part, error) {
	signed, err := readSigned(raw)
	if err != nil {
		return nil, err
	}
	p, err := r.open(signed)
	if err == nil {
		p.replayed = true
	}
	return p, err
}

// readSigned reads a message whose texts stay where they are: the generated reader would copy all of a base.
func readSigned(b []byte) (*syncv1.Signed, error) {
	signed := new(syncv1.Signed)
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, malformed(n)
		}
		b = b[n:]
		var hashed uint64
		switch {
		case num == 1 && typ == protowire.BytesType:
			signed.Payload, n = protowire.ConsumeBytes(b)
		case num == 2 && typ == protowire.BytesType:
			signed.Signature, n = protowire.ConsumeBytes(b)
		case num == 3 && typ == protowire.VarintType:
			hashed, n = protowire.ConsumeVarint(b)
			signed.Hashed = hashed != 0
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return nil, malformed(n)
		}
		b = b[n:]
	}
	return signed, nil
}

func (r *replay) take(u *part) (err error) {
	if u.Snapshot != (r.held == nil) {
		return errors.New("a base holds a snapshot and a log holds updates, this is the other")
	}
	if r.staged, r.whole, err = r.staged.add(u, r.held, 1<<62); err != nil || !r.whole {
		return err
	}
	r.held, err = r.staged.apply(r.held, u.Region)
	r.staged = nil
	return err
}

func (d *disk) loadLog(held *policy.Table, m mark, open func(*syncv1.Signed) (*part, error)) (*policy.Table, error) {
	path := d.path("log", d.gen)
	at := func(t *policy.Table) bool { return t.Catalog() == m.Catalog && t.Zone() == m.Zone }
	r := replay{open: open, held: held, whole: true}
	reached, begin := at(held), int64(-1)
	l, st, err := durable.OpenLog(d.fs, path, d.header("bwlog"), func(off int64, payload []byte) error {
		if r.whole {
			begin = off
		}
		d.records++
		if err := r.part(append([]byte(nil), payload...)); err != nil {
			return fmt.Errorf("record at byte %d: %w", off, err)
		}
		reached = reached || r.whole && at(r.held)
		return nil
	})
	if errors.Is(err, durable.ErrNewer) {
		return nil, err
	}
	if err == nil {
		d.deltas = l
		if st.Torn > 0 {
			d.log.Warn("torn tail of the table log is cut off", "file", path, "bytes", st.Torn)
		}
		if !r.whole { // an update of several parts of which the last did not reach the disk: never acked
			d.log.Warn("unfinished update at the end of the table log is cut off", "file", path, "offset", begin)
			err = l.Truncate(begin)
		}
	}
	if err == nil && !reached {
		err = fmt.Errorf("table log ends at byte %d before the position that was acked, %s and %s: it is cut short", l.Size(), m.Catalog, m.Zone)
	}
	if err != nil {
		d.refuse(path, err)
		return nil, err
	}
	return r.held, nil
}

// refuse sets a file aside under another name, so that nothing reads it again and a person can.
func (d *disk) refuse(path string, why error) {
	d.stats.Refused.Add(1)
	var c *durable.CorruptError
	attrs := []any{"file", path, "error", why}
	if errors.As(why, &c) {
		attrs = append(attrs, "offset", c.Offset)
	}
	d.log.Error("table file does not check out: it is refused and set aside, the edge waits for a snapshot", attrs...)
	if err := d.fs.Rename(path, path+refused); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Error("refused file cannot be set aside", "file", path, "error", err)
	}
	if err := d.fs.SyncDir(d.dir); err != nil {
		d.log.Error("table directory cannot be synced", "error", err)
	}
}

// refuseOrphans sets aside bases and logs that no mark vouches for.
func (d *disk) refuseOrphans() {
	for _, f := range d.generations() {
		d.gen = max(d.gen, f.gen)
		d.refuse(filepath.Join(d.dir, f.name), errors.New("no readable mark says what it must hold"))
	}
}

type generation struct {
	name string
	gen  uint64
}

func (d *disk) generations() (files []generation) {
	entries, err := d.fs.ReadDir(d.dir)
	if err != nil {
		d.log.Error("table directory cannot be read", "error", err)
	}
	for _, e := range entries {
		kind, num, ok := strings.Cut(e.Name(), "-")
		if gen, err := strconv.ParseUint(num, 10, 64); ok && err == nil && (kind == "base" || kind == "log") {
			files = append(files, generation{e.Name(), gen})
		}
	}
	return files
}

// rebase replaces base and log; in force on disk with the next writeMark.
func (d *disk) rebase(parts []*syncv1.Signed) error {
	gen := d.gen + 1
	size := 0
	for _, p := range parts {
		size += binary.MaxVarintLen64 + proto.Size(p)
	}
	blob := make([]byte, 0, size)
	for _, p := range parts {
		var err error
		blob = binary.AppendUvarint(blob, uint64(proto.Size(p)))
		if blob, err = (proto.MarshalOptions{}).MarshalAppend(blob, p); err != nil {
			return fmt.Errorf("encode update: %w", err)
		}
	}
	// Left over from an attempt that ended before the mark moved.
	if err := d.fs.Remove(d.path("log", gen)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.WriteSealed(d.fs, d.path("base", gen), d.header("bwbase"), blob); err != nil {
		return err
	}
	l, _, err := durable.OpenLog(d.fs, d.path("log", gen), d.header("bwlog"), nil)
	if err != nil {
		return err
	}
	d.close()
	d.gen, d.deltas, d.baseSize, d.records = gen, l, int64(len(blob)), 0
	return nil
}

// append makes the parts of one update durable.
func (d *disk) append(parts []*syncv1.Signed) error {
	if d.deltas == nil {
		return errors.New("there is no table log to add to")
	}
	for _, p := range parts {
		raw, err := proto.Marshal(p)
		if err != nil {
			return fmt.Errorf("encode update: %w", err)
		}
		if err := d.deltas.Append(raw); err != nil {
			return err
		}
	}
	d.records += len(parts)
	return d.deltas.Sync()
}

// writeMark notes what is acked, and clears away what it no longer names.
func (d *disk) writeMark(m mark) error {
	m.Gen = d.gen
	blob, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := durable.WriteSealed(d.fs, filepath.Join(d.dir, markName), d.header("bwmark"), blob); err != nil {
		return err
	}
	if d.records == 0 || m.Withdrawn {
		d.clear(m)
	}
	return nil
}

func (d *disk) clear(m mark) {
	for _, f := range d.generations() {
		if f.gen == m.Gen && !m.Withdrawn {
			continue
		}
		if err := d.fs.Remove(filepath.Join(d.dir, f.name)); err != nil {
			d.log.Error("old table file cannot be removed", "file", f.name, "error", err)
		}
	}
	if err := d.fs.SyncDir(d.dir); err != nil {
		d.log.Error("table directory cannot be synced", "error", err)
	}
}

// erase removes the table and keeps the positions: a withdrawn edge that is let in again must not go back.
func (d *disk) erase(floor [2]revision.Revision) error {
	d.close()
	return d.writeMark(mark{Catalog: floor[0], Zone: floor[1], Withdrawn: true})
}

// wantsBase says that the log costs more than a new base would.
func (d *disk) wantsBase() bool {
	if d.deltas == nil {
		return false
	}
	size := d.deltas.Size()
	return size > max(d.baseSize, foldMin) || d.records > d.maxRecords && size > d.baseSize/10
}

func (d *disk) close() {
	if d.deltas != nil {
		d.deltas.Close()
		d.deltas = nil
	}
}

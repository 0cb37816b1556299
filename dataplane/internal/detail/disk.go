package detail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"bailiwick/shared/durable"
)

// The files are durable.Logs, pieces-<n>, each beginning with the state without
// the pieces, so that any can go once its pieces are stored or given up.
//
//	state: n × (epoch, next, rows, stored, rows stored, until, n × lost)
//	piece: epoch, number, seq, through, rows, since, until, payload
//	lost:  epoch, from, to, rows, through, since, until
//	mark:  epoch, stored
//
// Of two records about one number the later holds.
const (
	recState = 1
	recPiece = 2
	recLost  = 3
	recMark  = 4
)

const logHead = 8 // what durable.Log puts before a payload

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (c *Config) header() durable.Header {
	return durable.Header{Magic: "bwdetail", Version: 1, Program: c.Program}
}

func (c *Config) path(no uint64) string {
	return filepath.Join(c.Dir, fmt.Sprintf("pieces-%016x", no))
}

func nums(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func encodePiece(epoch uint64, p *piece, payload []byte) (rec []byte, head int) {
	rec = make([]byte, 0, 64+len(payload))
	rec = nums(append(rec, recPiece), epoch, p.number, p.seq, p.through, uint64(p.rows), uint64(p.since), uint64(p.until))
	return append(rec, payload...), len(rec)
}

func encodeLost(epoch uint64, l *Lost) []byte {
	return nums([]byte{recLost}, epoch, l.From, l.To, uint64(l.Rows), l.through, uint64(l.SinceMS), uint64(l.UntilMS))
}

func encodeMark(epoch, stored uint64) []byte { return nums([]byte{recMark}, epoch, stored) }

func encodeState(epochs []*epoch) []byte {
	b := nums([]byte{recState}, uint64(len(epochs)))
	for _, e := range epochs {
		b = nums(b, e.epoch, e.next, e.rows, e.stored, e.storedRows, uint64(e.until), uint64(len(e.lost)))
		for _, l := range e.lost {
			b = nums(b, l.From, l.To, uint64(l.Rows), l.through, uint64(l.SinceMS), uint64(l.UntilMS))
		}
	}
	return b
}

// Open reads what is there. A file that is damaged is set aside and its pieces
// become losses: detail must not keep an edge from counting.
func Open(cfg Config) (*Spool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Spool{cfg: cfg.withDefaults(), changed: make(chan struct{})}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open detail spool %s: %w", cfg.Dir, err)
	}
	return s, nil
}

func (s *Spool) load() error {
	fsys := s.cfg.FS
	if err := fsys.MkdirAll(s.cfg.Dir, durable.DirPerm); err != nil {
		return err
	}
	dir, err := fsys.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, d := range dir {
		var no uint64
		if n, err := fmt.Sscanf(d.Name(), "pieces-%016x", &no); err == nil && n == 1 && s.cfg.path(no) == filepath.Join(s.cfg.Dir, d.Name()) {
			s.files = append(s.files, file{no: no})
		} else if strings.HasPrefix(d.Name(), "bad-") { // one is kept to be looked at
			if err := fsys.Remove(filepath.Join(s.cfg.Dir, d.Name())); err != nil {
				return err
			}
		}
	}
	slices.SortFunc(s.files, func(a, b file) int { return int(a.no) - int(b.no) })
	good := s.files[:0]
	last := uint64(0)
	for _, f := range s.files {
		last = f.no
		log, st, err := durable.OpenLog(fsys, s.cfg.path(f.no), s.cfg.header(), func(off int64, b []byte) error { return s.replay(f.no, off, b) })
		if errors.Is(err, durable.ErrCorrupt) {
			s.cfg.Logger.Error("usage detail is damaged: the file is set aside, its pieces are lost", "file", filepath.Base(s.cfg.path(f.no)), "error", err)
			s.drop(f.no)
			if err := fsys.Rename(s.cfg.path(f.no), filepath.Join(s.cfg.Dir, fmt.Sprintf("bad-%016x", f.no))); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if st.Torn > 0 {
			s.cfg.Logger.Warn("usage detail had a torn tail", "file", filepath.Base(s.cfg.path(f.no)), "bytes", st.Torn)
		}
		f.size = log.Size()
		log.Close()
		good = append(good, f)
	}
	s.files = good
	for _, e := range s.epochs {
		s.rowsLost.Add(e.settle())
	}
	slices.SortFunc(s.epochs, func(a, b *epoch) int {
		if a.epoch < b.epoch {
			return -1
		}
		return 1
	})
	return s.create(last + 1)
}

// drop forgets the pieces of a file that are being read and do not check out.
func (s *Spool) drop(no uint64) {
	for _, e := range s.epochs {
		e.pieces = slices.DeleteFunc(e.pieces, func(p piece) bool { return p.file == no })
	}
}

func (s *Spool) replay(no uint64, off int64, rec []byte) error {
	f := fields{b: rec}
	switch kind := f.num(); kind {
	case recState:
		var epochs []*epoch
		for range min(f.num(), 1<<20) {
			e := &epoch{epoch: f.num(), next: f.num(), rows: f.num(), stored: f.num(), storedRows: f.num(), until: int64(f.num())}
			for range min(f.num(), 1<<20) {
				if f.bad {
					break
				}
				e.lost = append(e.lost, f.lost())
			}
			if f.bad {
				break
			}
			if was := s.find(e.epoch); was != nil {
				e.pieces = slices.DeleteFunc(was.pieces, func(p piece) bool {
					// What is at or above next was written when writing seemed to fail.
					return p.number <= e.stored || p.number >= e.next || e.isLost(p.number)
				})
			}
			epochs = append(epochs, e)
		}
		s.epochs = epochs
	case recPiece:
		e := s.replayed(f.num())
		p := piece{number: f.num(), seq: f.num(), through: f.num(), rows: int64(f.num()), since: int64(f.num()), until: int64(f.num()), file: no, off: off, size: len(rec)}
		p.head = len(rec) - len(f.b)
		f.b, f.bad = nil, f.bad || p.number == math.MaxUint64
		if !f.bad && p.number > e.stored {
			e.add(p)
		}
	case recLost:
		e := s.replayed(f.num())
		l := f.lost()
		if !f.bad && l.From > e.stored {
			e.lose(l)
		}
	case recMark:
		e, stored := s.replayed(f.num()), f.num()
		if !f.bad && stored > e.stored && stored < math.MaxUint64 {
			e.mark(stored)
		}
	default:
		f.bad = true
	}
	if f.bad || len(f.b) > 0 {
		return &durable.CorruptError{Path: s.cfg.path(no), Offset: off, What: "a record of detail does not decode"}
	}
	return nil
}

func (e *epoch) isLost(number uint64) bool {
	return slices.ContainsFunc(e.lost, func(l Lost) bool { return number >= l.From && number <= l.To })
}

func (s *Spool) replayed(no uint64) *epoch {
	e := s.find(no)
	if e == nil {
		e = &epoch{epoch: no, next: 1}
		s.epochs = append(s.epochs, e)
	}
	return e
}

// create begins file no. Under work, or in Open.
func (s *Spool) create(no uint64) error {
	// What an attempt before left has a name that may not be on disk yet.
	if err := s.cfg.FS.Remove(s.cfg.path(no)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log, _, err := durable.OpenLog(s.cfg.FS, s.cfg.path(no), s.cfg.header(), nil)
	if err != nil {
		return err
	}
	if err = log.Append(encodeState(s.epochs)); err == nil {
		err = log.Sync()
	}
	if err != nil {
		log.Close()
		s.cfg.FS.Remove(s.cfg.path(no)) // best effort: left behind it says nothing new
		return err
	}
	if s.log != nil {
		s.log.Close()
	}
	s.log, s.files, s.stale = log, append(s.files, file{no, log.Size()}), false
	s.measure()
	return nil
}

// write brings a batch to the disk and publishes it. Under work.
func (s *Spool) write(b *batch) error {
	if s.log == nil || s.log.Size() > s.cfg.FileBytes {
		if err := s.create(s.files[len(s.files)-1].no + 1); err != nil {
			return err
		}
	}
	offs := make([]int64, len(b.recs))
	for i, r := range b.recs {
		offs[i] = s.log.Size()
		if err := s.log.Append(r); err != nil {
			s.broken()
			return err
		}
	}
	if err := s.log.Sync(); err != nil {
		s.broken()
		return err
	}
	cur := &s.files[len(s.files)-1]
	cur.size = s.log.Size()
	s.publish(func() {
		for i, apply := range b.apply {
			apply(cur.no, offs[i])
		}
	})
	s.measure()
	s.rowsKept.Add(b.counts.rows)
	s.rowsLost.Add(b.counts.lost)
	s.piecesKept.Add(b.counts.pieces)
	s.bytesKept.Add(b.counts.bytes)
	return nil
}

// broken leaves a file to which nothing can be written any more. Whether what
// was written last is there does not matter: a later record will hold.
func (s *Spool) broken() {
	s.log.Close()
	s.log = nil
}

func (s *Spool) measure() {
	total := int64(0)
	for _, f := range s.files {
		total += f.size
	}
	s.mu.Lock()
	s.sizes = total
	s.mu.Unlock()
}

// bound removes files of which nothing is wanted, and then the oldest until the
// budget holds. Under work.
func (s *Spool) bound() {
	wanted := map[uint64]bool{s.files[len(s.files)-1].no: true}
	s.mu.Lock()
	for _, e := range s.epochs {
		for i := range e.pieces {
			wanted[e.pieces[i].file] = true
		}
	}
	s.mu.Unlock()
	total := int64(0)
	for i := 0; i < len(s.files); i++ {
		if f := s.files[i]; !wanted[f.no] && s.remove(f.no) {
			s.files = slices.Delete(s.files, i, i+1)
			i--
			continue
		}
		total += s.files[i].size
	}
	for total > s.cfg.Budget && len(s.files) > 1 {
		total -= s.files[0].size
		if !s.giveUp() {
			break
		}
	}
	s.measure()
}

func (s *Spool) remove(no uint64) bool {
	if err := s.cfg.FS.Remove(s.cfg.path(no)); err != nil {
		s.cfg.Logger.Warn("remove usage detail", "error", err)
		return false
	}
	return true
}

// giveUp makes losses of the oldest file's pieces and removes it. The loss is
// said before; where the disk is too full even for that, settle says it at the
// next Open from the hole.
func (s *Spool) giveUp() bool {
	if len(s.files) < 2 {
		return false
	}
	no := s.files[0].no
	var b batch
	s.mu.Lock()
	for _, e := range s.epochs {
		var l Lost
		flush := func() {
			if l.From > 0 {
				b.begun = false
				b.lose(e, l)
			}
			l = Lost{}
		}
		for i := range e.pieces {
			p := &e.pieces[i]
			if p.file != no {
				continue
			}
			if o := p.asLost(); l.From > 0 && l.To+1 == o.From {
				l.To, l.Rows, l.through, l.UntilMS = o.To, l.Rows+o.Rows, o.through, o.UntilMS
			} else {
				flush()
				l = o
			}
		}
		flush()
	}
	s.mu.Unlock()
	rows := b.counts.lost
	if err := s.write(&b); err != nil {
		s.publish(func() {
			for _, apply := range b.apply {
				apply(0, 0)
			}
		})
		s.rowsLost.Add(rows)
	}
	s.cfg.Logger.Warn("usage detail was given up for want of space", "rows", rows, "budget", s.cfg.Budget)
	if !s.remove(no) {
		return false
	}
	s.files = s.files[1:]
	return true
}

// read brings a piece's payload back, if it is still what was written.
func (s *Spool) read(p *piece) ([]byte, error) {
	f, err := s.cfg.FS.Open(s.cfg.path(p.file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, p.size+4)
	if _, err := f.ReadAt(b, p.off+logHead); err != nil {
		return nil, fmt.Errorf("read usage detail: %w", err)
	}
	if crc32.Checksum(b[:p.size], castagnoli) != binary.LittleEndian.Uint32(b[p.size:]) {
		return nil, &durable.CorruptError{Path: s.cfg.path(p.file), Offset: p.off, What: "checksum of a piece of detail differs"}
	}
	return b[p.head:p.size], nil
}

// Close syncs and lets go of the file.
func (s *Spool) Close() error {
	s.work.Lock()
	defer s.work.Unlock()
	if s.log == nil {
		return nil
	}
	return errors.Join(s.log.Sync(), s.log.Close())
}

// fields takes a record apart and remembers that it could not.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) num() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

// lost is what stands in the place of numbers. Behind the last number there is no next one: nobody writes it.
func (f *fields) lost() Lost {
	l := Lost{From: f.num(), To: f.num(), Rows: int64(f.num()), through: f.num(), SinceMS: int64(f.num()), UntilMS: int64(f.num())}
	f.bad = f.bad || l.From == 0 || l.To < l.From || l.To == math.MaxUint64
	return l
}

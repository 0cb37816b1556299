package detail

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// catalog says which files are the store's. It is replaced atomically: what it does not name is a leftover of
// a crash and removed at the next start.
type catalog struct {
	FirstLog uint64  `json:"first_log"` // logs below it are in files
	NextFile uint64  `json:"next_file"`
	Files    []info  `json:"files"`
	Marks    []mark  `json:"marks"` // of what is in files; logs add theirs
	Lost     []Lost  `json:"lost"`
	Removed  removed `json:"removed"`
}

type mark struct {
	Edge   string `json:"edge"`
	Epoch  uint64 `json:"epoch"`
	Stored uint64 `json:"stored"`
	SeenMS int64  `json:"seen_ms"` // when it last grew
}

// removed counts what went before its time, by the budget.
type removed struct {
	Files   int64 `json:"files"`
	Rows    int64 `json:"rows"`
	UntilMS int64 `json:"until_ms"` // rows that ended before may be among them
}

const catalogName = "catalog"

func (s *Store) catalogHeader() durable.Header {
	return durable.Header{Magic: "bwdtlcat", Version: 1, Program: s.cfg.Program}
}

func (s *Store) recover() error {
	if err := s.fs.MkdirAll(s.cfg.Dir, durable.DirPerm); err != nil {
		return err
	}
	blob, _, err := durable.ReadSealed(s.fs, s.path(catalogName), s.catalogHeader(), 0)
	switch {
	case missing(err):
		s.cat.FirstLog, s.cat.NextFile = 1, 1
	case err != nil:
		return fmt.Errorf("%w: restore the file, or move the directory away to begin without what it holds", err)
	default:
		if err := json.Unmarshal(blob, &s.cat); err != nil {
			return fmt.Errorf("read %s: %w", catalogName, err)
		}
	}
	for _, m := range s.cat.Marks {
		s.marks[epochKey{m.Edge, m.Epoch}] = m.Stored
	}
	logs, err := s.tidy()
	if err != nil {
		return err
	}
	for _, number := range logs {
		if err := s.replay(number); err != nil {
			return err
		}
	}
	if len(s.tables) == 0 {
		return s.open(s.cat.FirstLog)
	}
	if s.old { // what comes now goes into a log whose header says so
		return s.open(s.cur.number + 1)
	}
	s.wake()
	return nil
}

// tidy removes what a crash left and the catalog does not name, and lists the logs to replay.
func (s *Store) tidy() (logs []uint64, err error) {
	entries, err := s.fs.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, f := range s.cat.Files {
		named[f.Name] = true
	}
	for _, e := range entries {
		name := e.Name()
		keep := name == catalogName || named[name]
		if text, is := strings.CutPrefix(name, "log-"); is {
			if n, err := strconv.ParseUint(text, 10, 64); err == nil && n >= s.cat.FirstLog {
				logs, keep = append(logs, n), true
			}
		}
		delete(named, name)
		if keep {
			continue
		}
		s.log.Info("leftover of detail removed", "file", name)
		if err := s.fs.Remove(s.path(name)); err != nil && !missing(err) {
			return nil, err
		}
	}
	for name := range named {
		s.sound[name] = fmt.Errorf("open %s: %w", name, os.ErrNotExist)
		s.log.Error("a file of detail is gone; its rows are not found any more", "file", name)
	}
	slices.Sort(logs)
	return logs, s.fs.SyncDir(s.cfg.Dir)
}

// keep rolls, expires and erases: the only one that changes files and the catalog.
func (s *Store) keep(ctx context.Context) error {
	tick := time.NewTicker(min(s.cfg.RollEvery, time.Minute))
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case o := <-s.orders:
			o.done <- o.work(ctx)
		case <-s.frozen:
			err = s.rollAll(ctx)
		case <-tick.C:
			err = errors.Join(s.rollAll(ctx), s.expire())
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("detail is not rolled; it is tried again", "error", err) // the logs keep everything meanwhile
		}
	}
}

// order is work for the keeper; done has room for its answer.
type order struct {
	work func(context.Context) error
	done chan error
}

// order has the keeper do something and waits for it.
func (s *Store) order(ctx context.Context, work func(context.Context) error) error {
	o := order{work, make(chan error, 1)}
	select {
	case s.orders <- o:
	case <-s.done:
		return s.stopped()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-s.done:
		return s.stopped()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rollAll writes every frozen table as Parquet, the oldest first.
func (s *Store) rollAll(ctx context.Context) error {
	for {
		s.mu.Lock()
		var t *table
		if len(s.tables) > 1 {
			t = s.tables[0]
		}
		s.mu.Unlock()
		if t == nil {
			return nil
		}
		if _, err := s.roll(ctx, t, ""); err != nil {
			return fmt.Errorf("roll %s: %w", logName(t.number), err)
		}
	}
}

const day = int64(24 * time.Hour / time.Millisecond)

func dayOf(ms int64) int64 { // in days since 1970, before it too
	d := ms / day
	if ms%day < 0 {
		d--
	}
	return d
}

// roll writes one table, a file a day that its rows ended on, so that files end by age as a whole. It answers
// how many rows it dropped of the customer asked about.
func (s *Store) roll(ctx context.Context, t *table, customer string) (his int64, err error) {
	next := s.clone()
	days := map[int64]bool{}
	for _, p := range t.pieces {
		for d := dayOf(p.min); p.rows > 0 && d <= dayOf(p.max); d++ {
			days[d] = true
			if len(days) > 4096 {
				return 0, errors.New("its rows lie on too many days")
			}
		}
	}
	var made []info
	var dropped, expired int64
	cut := s.cutoff()
	for _, d := range slices.Sorted(maps.Keys(days)) {
		f, err := s.create(next.NextFile)
		if err != nil {
			return 0, err
		}
		lo, hi := d*day, (d+1)*day
		chunk := make([]record, 0, min(groupRows, 4096))
		for i := range t.pieces {
			p := &t.pieces[i]
			if p.rows == 0 || p.max < lo || p.min >= hi {
				continue
			}
			if err := ctx.Err(); err != nil {
				return 0, errors.Join(err, f.discard())
			}
			rows, err := usage.DecodeDetail(p.Payload)
			if err != nil {
				return 0, errors.Join(err, f.discard())
			}
			erased := map[string]bool{}
			for _, c := range p.Customers {
				erased[c] = s.cfg.Erased(c)
			}
			for j := range rows {
				r := &rows[j]
				switch {
				case r.EndUnixMS < lo || r.EndUnixMS >= hi:
				case erased[r.Customer]:
					dropped++
					if r.Customer == customer {
						his++
					}
				case r.EndUnixMS < cut:
					expired++
				default:
					chunk = append(chunk, recordOf(p, r))
				}
				if len(chunk) == groupRows {
					if err := f.group(chunk); err != nil {
						return 0, errors.Join(err, f.discard())
					}
					chunk = chunk[:0]
				}
			}
		}
		if err := f.group(chunk); err != nil {
			return 0, errors.Join(err, f.discard())
		}
		done, err := f.finish()
		if err != nil {
			return 0, err
		}
		if done.Name != "" {
			made = append(made, done)
			next.NextFile++
		}
	}
	s.settle(&next, t)
	next.FirstLog = t.number + 1
	next.Files = append(next.Files, made...)
	if err := s.commitCatalog(next, func() { s.tables = s.tables[1:] }); err != nil {
		return 0, err
	}
	s.count(func(st *Stats) { st.ErasedRows += dropped })
	if t.log != nil {
		_ = t.log.Close()
	}
	if err := s.remove(logName(t.number)); err != nil {
		return his, err
	}
	s.log.Debug("detail rolled", "log", logName(t.number), "files", len(made), "erased_rows", dropped, "expired_rows", expired)
	return his, s.trim()
}

// clone is the catalog to change; files are copied, since readers hold the old slice.
func (s *Store) clone() catalog {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.cat
	next.Files = slices.Clone(next.Files)
	return next
}

// settle takes over a table's marks and facts, and lets go of epochs that have been silent for longer than rows
// are kept: their edge has trimmed what was acknowledged long ago.
func (s *Store) settle(next *catalog, t *table) {
	now := s.cfg.Now()
	old := func(ms int64) bool { return now.UnixMilli()-ms >= s.cfg.Retention.Milliseconds() }
	marks := map[epochKey]mark{}
	for _, m := range next.Marks {
		if !old(m.SeenMS) {
			marks[epochKey{m.Edge, m.Epoch}] = m
		}
	}
	for k, stored := range t.marks {
		marks[k] = mark{k.edge, k.epoch, stored, now.UnixMilli()}
	}
	next.Marks = slices.SortedFunc(maps.Values(marks), func(a, b mark) int {
		return cmp.Or(strings.Compare(a.Edge, b.Edge), cmp.Compare(a.Epoch, b.Epoch))
	})
	next.Lost = slices.DeleteFunc(addLost(next.Lost, t.lost...), func(l Lost) bool { return old(l.Until.UnixMilli()) })
}

// commitCatalog makes next the catalog, and what goes with it visible to readers at the same time.
func (s *Store) commitCatalog(next catalog, also func()) error {
	blob, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := durable.WriteSealed(s.fs, s.path(catalogName), s.catalogHeader(), blob); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cat = next
	also()
	return nil
}

func (s *Store) remove(names ...string) error {
	var errs []error
	for _, name := range names {
		if err := s.fs.Remove(s.path(name)); err != nil && !missing(err) {
			errs = append(errs, err)
		}
	}
	s.mu.Lock()
	for _, name := range names {
		delete(s.sound, name)
	}
	s.mu.Unlock()
	return errors.Join(append(errs, s.fs.SyncDir(s.cfg.Dir))...)
}

// cutoff is the instant (unix ms) before which no row is kept.
func (s *Store) cutoff() int64 { return s.cfg.Now().Add(-s.cfg.Retention).UnixMilli() }

// expire removes files whose oldest row has reached the end of its retention. A file spans a day at most and an
// hour as a rule, so the others in it go that much early: kept too long is what was promised not to happen.
func (s *Store) expire() error {
	cut := s.cutoff()
	return s.drop(func(f info) bool { return f.MinMS < cut }, func(next *catalog, gone []info) {
		s.count(func(st *Stats) { st.Expired += int64(len(gone)) })
	})
}

// trim keeps the budget: the oldest files go first, and that is counted for good.
func (s *Store) trim() error {
	s.mu.Lock()
	over := -s.cfg.Budget
	for _, f := range s.cat.Files {
		over += f.Bytes
	}
	for _, t := range s.tables {
		over += int64(t.bytes)
	}
	files := slices.Clone(s.cat.Files)
	s.mu.Unlock()
	slices.SortFunc(files, func(a, b info) int { return cmp.Compare(a.MaxMS, b.MaxMS) })
	victims := map[string]bool{}
	for _, f := range files {
		if over <= 0 {
			break
		}
		victims[f.Name], over = true, over-f.Bytes
	}
	return s.drop(func(f info) bool { return victims[f.Name] }, func(next *catalog, gone []info) {
		for _, f := range gone {
			next.Removed.Files, next.Removed.Rows, next.Removed.UntilMS = next.Removed.Files+1, next.Removed.Rows+f.Rows, max(next.Removed.UntilMS, f.MaxMS+1)
		}
		s.count(func(st *Stats) { st.OverBudget += int64(len(gone)) })
		s.log.Warn("detail is over its budget; the oldest files go", "files", len(gone), "budget_bytes", s.cfg.Budget)
	})
}

func (s *Store) drop(which func(info) bool, tell func(*catalog, []info)) error {
	next := s.clone()
	var gone []info
	var names []string
	next.Files = slices.DeleteFunc(next.Files, func(f info) bool {
		if which(f) {
			gone, names = append(gone, f), append(names, f.Name)
			return true
		}
		return false
	})
	if len(gone) == 0 {
		return nil
	}
	tell(&next, gone)
	if err := s.commitCatalog(next, func() {}); err != nil {
		return err
	}
	return s.remove(names...)
}

// keptSince is the instant from which on rows are here, as far as they ever were.
func (s *Store) keptSince(cat *catalog) time.Time {
	return time.UnixMilli(max(s.cutoff(), cat.Removed.UntilMS)).UTC()
}

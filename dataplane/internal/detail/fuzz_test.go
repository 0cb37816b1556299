package detail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
)

// Records of any bytes in a file that checks out: it opens, or is set aside; what it says then can be written, and is there again at
// the next start, number by number.
func FuzzReplay(f *testing.F) {
	pack := func(recs ...[]byte) (all []byte) {
		for _, r := range recs {
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(r))), r...)
		}
		return all
	}
	one, _ := encodePiece(3, &piece{number: 1, seq: 1, through: 5, rows: 5, since: 1, until: 2}, []byte("payload"))
	three, _ := encodePiece(3, &piece{number: 3, seq: 2, through: 9, rows: 2, since: 3, until: 4}, []byte("payload"))
	f.Add(pack(encodeState(nil), one, three, encodeMark(3, 1)))
	f.Add(pack(one, encodeLost(3, &Lost{From: 2, To: 4, Rows: 1, through: 6}), encodeLost(3, &Lost{From: 1, To: 1<<64 - 1, Rows: -1})))
	f.Add(pack([]byte{recState, 0xff, 0xff, 0x3f, 1}, nums([]byte{recState}, 1, 3, 4, 5, 6, 7, 8, 1<<20)))
	f.Fuzz(func(t *testing.T, all []byte) {
		if len(all) > 16<<10 {
			return
		}
		fsys := durabletest.New()
		cfg := Config{Dir: "detail", Edge: "e1", FS: fsys, Program: "test", Logger: slog.New(slog.DiscardHandler)}
		if err := fsys.MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
			t.Fatal(err)
		}
		log, _, err := durable.OpenLog(fsys, filepath.Join(cfg.Dir, "pieces-0000000000000001"), durable.Header{Magic: "bwdetail", Version: 1, Program: "test"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		stateless := true // of what a state says nobody but its writer knows whether it can be
		for len(all) >= 2 {
			n := min(int(binary.BigEndian.Uint16(all)), len(all)-2)
			if err := log.Append(all[2 : 2+n]); err != nil {
				t.Fatal(err)
			}
			stateless = stateless && (n == 0 || all[2] != recState)
			all = all[2+n:]
		}
		if err := errors.Join(log.Sync(), log.Close()); err != nil {
			t.Fatal(err)
		}
		var said [2][]byte
		for i := range said {
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			said[i] = encodeState(s.epochs)
			for _, e := range s.epochs {
				for k := range e.pieces {
					said[i] = nums(said[i], e.epoch, e.pieces[k].number)
					if k > 0 && e.pieces[k].number <= e.pieces[k-1].number || e.pieces[k].number <= e.stored {
						t.Fatalf("epoch %d: piece %d behind another, %d stored", e.epoch, e.pieces[k].number, e.stored)
					}
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if stateless && !bytes.Equal(said[0], said[1]) {
			t.Fatalf("%x at the first start, %x at the next", said[0], said[1])
		}
	})
}

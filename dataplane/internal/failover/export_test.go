package failover

import (
	"context"
	"time"
)

// Tally and Judged give tests the comparison of targets.
type Tally struct{ Good, Bad int64 }

type Judge struct{ records []record }

func NewJudge(n int) *Judge { return &Judge{make([]record, n)} }

func (j *Judge) Step(now time.Duration, percent int, tallies ...Tally) (out []bool) {
	for i, t := range tallies {
		j.records[i].tally = tally{t.Good, t.Bad}
	}
	judge(j.records, percent, now)
	for _, r := range j.records {
		out = append(out, r.out)
	}
	return out
}

// AliveSince is what a walk asks that found the target silent so long ago.
func (t *Target) AliveSince(ctx context.Context, ago time.Duration, once bool) bool {
	return t.alive(ctx, t.m.now()-ago, t.m.cfg.LivenessWait, !once)
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

const (
	minEvery = 250 * time.Millisecond // between two questions
	maxEvery = time.Hour
	// rebase is how long sums are counted from one beginning, so that a watch of days asks for little.
	rebase = 2 * time.Hour
	// trendLength is how many rates the line on a terminal remembers. No line may be wrapped at 80 columns, or the
	// picture would not be drawn over itself.
	trendLength = 48
)

func (a *app) usageWatchCommand() *cobra.Command {
	w := &watch{app: a}
	var zoneName string
	c := &cobra.Command{Use: "watch --customer NAME", Short: "Watch a customer's usage as it arrives, until Ctrl-C", Args: cobra.NoArgs,
		Long: `Watch a customer's usage as it arrives: requests a second by outcome, the share that a limit refused, and how far behind
the ledger is. On a terminal the picture is drawn anew each time, elsewhere a line is added. When a control node dies
the next one is asked. Ctrl-C ends it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if w.every < minEvery || w.every > maxEvery {
				return misuse("--every: choose between %v and %v", minEvery, maxEvery)
			}
			client, err := a.connect()
			if err != nil {
				return err
			}
			w.client = client
			return w.run(cmd.Context(), zoneName)
		}}
	c.Flags().StringVar(&w.customer, "customer", "", "whose usage")
	c.Flags().DurationVar(&w.every, "every", 2*time.Second, "how often to ask")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	must(c.MarkFlagRequired("customer"))
	return c
}

// watch is one watch going on.
type watch struct {
	*app
	client   *client
	customer string
	every    time.Duration
	urls     []string // of the customer's zone, the one that answered last first

	base  time.Time // since when sums are counted
	sums  map[string]int64
	at    time.Time // when sums were true
	rates []int64   // of requests, milli per second, for the trend
	drawn int       // lines on the terminal
}

func (w *watch) run(ctx context.Context, zoneName string) error {
	if err := w.find(ctx, zoneName); err != nil {
		return err
	}
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			if fault.KindOf(err) != fault.Unavailable {
				return err
			}
			w.say("no control node answers, asking again: " + describe(err))
		}
		select {
		case <-ctx.Done():
			return nil // Ctrl-C is how it ends
		case <-tick.C:
		}
	}
}

// find asks the zones one by one for the customer, with the command's patience.
func (w *watch) find(ctx context.Context, zoneName string) error {
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	w.base, w.at = time.Now(), time.Now()
	resp, err := around(ctx, w.client, zoneName, func(ctx context.Context, n api) (*adminv1.QueryUsageResponse, error) {
		return n.QueryUsage(ctx, w.request(w.base))
	})
	if asked.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	w.sums = byOutcome(resp)
	zones, err := w.client.zones(ctx)
	if err != nil {
		return err
	}
	for _, z := range zones { // wrong ones send us on, and then come after those that answer
		if zoneName == "" || z.name == zoneName {
			w.urls = append(w.urls, z.urls...)
		}
	}
	return nil
}

func (w *watch) request(since time.Time) *adminv1.QueryUsageRequest {
	return &adminv1.QueryUsageRequest{Customer: w.customer, Since: timestamppb.New(since), GroupBy: []string{"outcome"}}
}

// ask tries each control node, the last that answered first: one that died costs one attempt, once.
func (w *watch) ask(ctx context.Context, since time.Time) (*adminv1.QueryUsageResponse, error) {
	var worst error
	for i, u := range w.urls {
		resp, err := ask(ctx, w.client, []string{u}, func(ctx context.Context, n api) (*adminv1.QueryUsageResponse, error) {
			ctx, cancel := context.WithTimeout(ctx, max(w.every, 2*time.Second))
			defer cancel()
			return n.QueryUsage(ctx, w.request(since))
		})
		if err == nil {
			w.urls = slices.Concat(w.urls[i:i+1], w.urls[:i], w.urls[i+1:])
			return resp, nil
		}
		if k := fault.KindOf(err); k != fault.Unavailable && k != fault.NotFound {
			return nil, err
		}
		if worst == nil || fault.KindOf(err) == fault.Unavailable {
			worst = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, worst
}

// byOutcome holds whole numbers only, so that nothing is lost between two answers.
func byOutcome(resp *adminv1.QueryUsageResponse) map[string]int64 {
	sums := map[string]int64{}
	for _, r := range resp.GetRows() {
		sums[r.GetOutcome()] += r.GetRequests()
	}
	return sums
}

func (w *watch) look(ctx context.Context) error {
	resp, err := w.ask(ctx, w.base)
	if err != nil {
		return err
	}
	now := time.Now()
	sums := byOutcome(resp)
	w.show(now, now.Sub(w.at), sums, resp)
	w.sums, w.at = sums, now
	if now.Sub(w.base) < rebase {
		return nil
	}
	resp, err = w.ask(ctx, now)
	if err != nil {
		return nil // later
	}
	// What came between the two answers is in the second one alone: it is not shown, and no sum is wrong by it.
	w.base, w.sums = now, byOutcome(resp)
	return nil
}

func (w *watch) show(now time.Time, over time.Duration, sums map[string]int64, resp *adminv1.QueryUsageResponse) {
	type rate struct {
		outcome string
		news    int64
	}
	var rates []rate
	var all, limited int64
	for outcome, n := range sums {
		news := n - w.sums[outcome]
		all += news
		if outcome == "limited" {
			limited = news
		}
		if n != 0 {
			rates = append(rates, rate{outcome, news})
		}
	}
	slices.SortFunc(rates, func(a, b rate) int { return cmp.Or(cmp.Compare(b.news, a.news), strings.Compare(a.outcome, b.outcome)) })
	perSecond := func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/over.Seconds()) }
	share := "0 %"
	if all > 0 {
		share = fmt.Sprintf("%.1f %%", 100*float64(limited)/float64(all))
	}
	if limited > 0 {
		share = w.warn(share)
	}
	behind := "unknown: not every edge has reported"
	if t := resp.GetCompleteThrough(); t != nil {
		behind = fmt.Sprintf("%.1fs", max(0, now.Sub(t.AsTime()).Seconds()))
	}
	if !w.live() {
		parts := []string{now.UTC().Format(time.RFC3339), "rate=" + perSecond(all) + "/s"}
		for _, r := range rates {
			parts = append(parts, r.outcome+"="+perSecond(r.news)+"/s")
		}
		w.say(strings.Join(append(parts, "limited="+strings.ReplaceAll(share, " ", ""), "behind="+behind), " "))
		return
	}
	w.rates = append(w.rates, int64(float64(all)*1000/over.Seconds()))
	w.rates = w.rates[max(0, len(w.rates)-trendLength):]
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s, every %v; Ctrl-C ends it\n\n", w.customer, now.Format(time.TimeOnly), w.every)
	fmt.Fprintf(&b, "%10s requests/s  |%s|\n", perSecond(all), sparkline(w.rates))
	for _, r := range rates {
		fmt.Fprintf(&b, "%10s %s\n", perSecond(r.news), r.outcome)
	}
	fmt.Fprintf(&b, "\nlimited %s, ledger behind by %s\n", share, behind)
	w.draw(b.String())
}

// say adds a line; on a terminal, beneath the picture, which is then drawn anew below it.
func (w *watch) say(line string) {
	fmt.Fprintln(w.out, line)
	w.drawn = 0
}

// draw puts a picture in the place of the one before.
func (w *watch) draw(picture string) {
	up := ""
	if w.drawn > 0 {
		up = fmt.Sprintf("\x1b[%dA\x1b[J", w.drawn) // up, and clear to the end of the screen
	}
	w.drawn = strings.Count(picture, "\n")
	fmt.Fprint(w.out, up+picture)
}

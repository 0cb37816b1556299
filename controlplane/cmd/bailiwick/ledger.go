package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// ledgerCommands are what an operator does to a zone's ledger; they live below `usage`.
func (a *app) ledgerCommands() []*cobra.Command {
	return []*cobra.Command{a.epochsCommand(), a.closeEpochCommand(), a.correctCommand(), a.undoCommand(), a.correctionsCommand(),
		a.refusalsCommand(), a.periodsCommand(), a.sinksCommand()}
}

type ledgerEpoch struct {
	Zone         string `json:"zone,omitempty"`
	Edge         string `json:"edge"`
	Region       string `json:"region"`
	Epoch        uint64 `json:"epoch"`
	AppliedSeq   uint64 `json:"applied_seq"`
	SealedSeq    uint64 `json:"sealed_seq"`
	Through      moment `json:"through"`
	Status       string `json:"status"`
	Gap          uint64 `json:"gap"`
	ForkedSeq    uint64 `json:"forked_seq,omitempty"`
	ClosedBy     string `json:"closed_by,omitempty"`
	ClosedAt     string `json:"closed_at,omitempty"`
	ClosedReason string `json:"closed_reason,omitempty"`
	Held         string `json:"held,omitempty"`
}

func epochOf(zone string, e *adminv1.LedgerEpoch) ledgerEpoch {
	out := ledgerEpoch{Zone: zone, Edge: e.GetEdge(), Region: e.GetRegion(), Epoch: e.GetEpoch(), AppliedSeq: e.GetAppliedSeq(), SealedSeq: e.GetSealedSeq(),
		Through: moment(clock(e.GetThrough())), Status: e.GetStatus(), Gap: e.GetGap(), ForkedSeq: e.GetForkedSeq(),
		ClosedBy: e.GetClosedBy(), ClosedAt: clock(e.GetClosedAt()), ClosedReason: e.GetClosedReason()}
	if e.GetStatus() == "closed" {
		out.Held = e.GetHeld()
	}
	return out
}

func (a *app) epochsCommand() *cobra.Command {
	var edge, filter string
	c := &cobra.Command{Use: "epochs", Short: "Show how far each edge's usage is in the ledger", Args: cobra.NoArgs,
		Long: `Show how far each edge's usage is in the ledger. A status is open (blocks are known to be on their way), complete,
closed (by an operator; a gap is what was lost) or quarantined: two spools speak for one epoch, as after a disk was
cloned, and nothing of it is counted or acknowledged until an operator closes it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListEpochsResponse, error) {
					return n.ListEpochs(ctx, &adminv1.ListEpochsRequest{Edge: edge, Filter: filter})
				})
				if err != nil {
					return err
				}
				out := []ledgerEpoch{}
				for _, zone := range sorted(answers) {
					for _, e := range answers[zone].GetEpochs() {
						out = append(out, epochOf(zone, e))
						if e.GetStatus() == "quarantined" {
							fmt.Fprintf(a.err, "warning: epoch %d of edge %s is quarantined at block %d: find out which disk is the copy, then close it\n", e.GetEpoch(), e.GetEdge(), e.GetForkedSeq())
						}
					}
				}
				return a.printEpochs(out)
			})
		}}
	c.Flags().StringVar(&edge, "edge", "", "of this edge only")
	return filtered(c, &filter)
}

func (a *app) printEpochs(list []ledgerEpoch) error {
	return a.print(list, func(w io.Writer) {
		var lines [][]string
		for _, e := range list {
			lines = append(lines, []string{e.Edge, e.Region, strconv.FormatUint(e.Epoch, 10), e.Status, strconv.FormatUint(e.AppliedSeq, 10),
				strconv.FormatUint(e.SealedSeq, 10), strconv.FormatUint(e.Gap, 10), string(e.Through), e.ClosedBy, e.ClosedReason})
		}
		rows(w, "EDGE REGION EPOCH STATUS APPLIED SEALED GAP THROUGH CLOSED-BY REASON", lines)
	})
}

func (a *app) closeEpochCommand() *cobra.Command {
	req := &adminv1.CloseEpochRequest{}
	var zoneName string
	c := &cobra.Command{Use: "close-epoch EDGE EPOCH --reason TEXT", Short: "Declare that no further usage of an edge's epoch will come", Args: cobra.ExactArgs(2),
		Long: `Declare that no further usage of an edge's epoch will come: its disk is gone, or two disks speak for it. Blocks that
are known to have existed and never came become a permanent gap. There is no undo; usage known from elsewhere is
booked with usage correct.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil || number == 0 {
				return misuse("epoch %q is not a number from 1", args[1])
			}
			switch req.Held {
			case "", "auto", "return", "forfeit":
			default:
				return misuse("--held %q is none of auto, return, forfeit", req.Held)
			}
			req.Edge, req.Epoch = args[0], number
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.CloseEpochResponse, error) { return n.CloseEpoch(ctx, req) })
				if err != nil {
					return err
				}
				return a.printEpochs([]ledgerEpoch{epochOf("", resp.GetEpoch())})
			})
		}}
	c.Flags().Uint64Var(&req.SealedSeq, "sealed", 0, "highest block known to have existed, if the ledger has not heard of it")
	c.Flags().StringVar(&req.Held, "held", "auto", "quota units that the epoch held: auto, return or forfeit")
	c.Flags().StringVar(&req.Reason, "reason", "", "why; kept for good")
	c.Flags().StringVar(&zoneName, "zone", "", "the edge's zone; left out, the zones are asked one by one")
	c.MarkFlagRequired("reason")
	return c
}

// warnUnshipped says what an edge still owes before it is withdrawn. It is best effort: a node is removed when
// things are down, too.
func (a *app) warnUnshipped(ctx context.Context, c *client, edge string) {
	answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListEpochsResponse, error) {
		return n.ListEpochs(ctx, &adminv1.ListEpochsRequest{Edge: edge})
	})
	if err != nil {
		fmt.Fprintf(a.err, "warning: whether edge %s has usage that it has not shipped is not known: %s\n", edge, describe(err))
		return
	}
	for _, zone := range sorted(answers) {
		for _, e := range answers[zone].GetEpochs() {
			if e.GetSealedSeq() > e.GetAppliedSeq() && e.GetStatus() != "closed" {
				fmt.Fprintf(a.err, "warning: blocks %d to %d of epoch %d of edge %s are not in the ledger: let it join again to ship them, or give them up with usage close-epoch\n",
					e.GetAppliedSeq()+1, e.GetSealedSeq(), e.GetEpoch(), edge)
			}
		}
	}
}

type usageRefusal struct {
	Zone   string `json:"zone"`
	Edge   string `json:"edge"`
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
	First  string `json:"first"`
	Last   string `json:"last"`
	Epoch  uint64 `json:"sample_epoch"`
	Seq    uint64 `json:"sample_seq"`
	Detail string `json:"sample_detail"`
}

func (a *app) refusalsCommand() *cobra.Command {
	return &cobra.Command{Use: "refusals", Short: "Show usage that was refused, by edge and reason", Args: cobra.NoArgs,
		Long: `Show usage that was refused, by edge and reason, with the newest block as a sample. What is refused stays on the edge's
disk and is offered again; a fork or an implausible block needs somebody to look at the edge.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListRefusalsResponse, error) {
					return n.ListRefusals(ctx, &adminv1.ListRefusalsRequest{})
				})
				if err != nil {
					return err
				}
				out := []usageRefusal{}
				for _, zone := range sorted(answers) {
					for _, r := range answers[zone].GetRefusals() {
						out = append(out, usageRefusal{zone, r.GetEdge(), r.GetReason(), r.GetCount(), clock(r.GetFirst()), clock(r.GetLast()), r.GetSampleEpoch(), r.GetSampleSeq(), r.GetSampleDetail()})
					}
				}
				return a.print(out, func(w io.Writer) {
					var lines [][]string
					for _, r := range out {
						lines = append(lines, []string{r.Edge, r.Reason, number(r.Count), r.First, r.Last, fmt.Sprintf("%d/%d", r.Epoch, r.Seq), r.Detail})
					}
					rows(w, "EDGE REASON COUNT FIRST LAST SAMPLE DETAIL", lines)
				})
			})
		}}
}

type closedPeriod struct {
	Zone      string   `json:"zone"`
	Day       string   `json:"day"`
	ClosedAt  string   `json:"closed_at"`
	Why       string   `json:"why"`
	WaitedFor []string `json:"waited_for"`
	Compacted bool     `json:"compacted"`
}

func (a *app) periodsCommand() *cobra.Command {
	return &cobra.Command{Use: "periods", Short: "Show which days of usage are closed, and why", Args: cobra.NoArgs,
		Long: `Show which days (UTC) of usage are closed. A day closes when every edge has told all of it (complete), or when grace is
over (grace; the edges that were waited for are named). What comes later is counted all the same, marked as late.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListPeriodsResponse, error) {
					return n.ListPeriods(ctx, &adminv1.ListPeriodsRequest{})
				})
				if err != nil {
					return err
				}
				out := []closedPeriod{}
				for _, zone := range sorted(answers) {
					for _, p := range answers[zone].GetPeriods() {
						out = append(out, closedPeriod{zone, p.GetDay(), clock(p.GetClosedAt()), p.GetWhy(), append([]string{}, p.GetWaitedFor()...), p.GetCompacted()})
					}
				}
				return a.print(out, func(w io.Writer) {
					var lines [][]string
					for _, p := range out {
						lines = append(lines, []string{p.Zone, p.Day, p.ClosedAt, p.Why, strings.Join(p.WaitedFor, ","), strconv.FormatBool(p.Compacted)})
					}
					rows(w, "ZONE DAY CLOSED-AT WHY WAITED-FOR COMPACTED", lines)
				})
			})
		}}
}

type sinkPosition struct {
	Zone     string `json:"zone"`
	Sink     string `json:"sink"`
	Position uint64 `json:"position"`
	Lost     uint64 `json:"lost"`
	LostFrom uint64 `json:"lost_from"`
	LostTo   uint64 `json:"lost_to"`
}

func (a *app) sinksCommand() *cobra.Command {
	return &cobra.Command{Use: "sinks", Short: "Show how far each sink has taken usage, and what it never will", Args: cobra.NoArgs,
		Long: `Show how far each sink (bailiwick-control run -sink) has taken a zone's usage, in blocks counted from 1. LOST are blocks
that the outbox gave up because a sink was away for too long: they are in the ledger, and will never be in that sink.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListSinksResponse, error) {
					return n.ListSinks(ctx, &adminv1.ListSinksRequest{})
				})
				if err != nil {
					return err
				}
				out := []sinkPosition{}
				var lines [][]string
				count := func(n uint64) string { return strconv.FormatUint(n, 10) }
				for _, zone := range sorted(answers) {
					for _, k := range answers[zone].GetSinks() {
						out = append(out, sinkPosition{zone, k.GetName(), k.GetPosition(), k.GetLost(), k.GetLostFrom(), k.GetLostTo()})
						lost := ""
						if k.GetLost() > 0 {
							lost = fmt.Sprintf("%d of %d-%d", k.GetLost(), k.GetLostFrom(), k.GetLostTo())
							fmt.Fprintf(a.err, "warning: zone %s: sink %s has lost %d blocks, the first of them %d and the last %d\n", zone, legible(k.GetName()), k.GetLost(), k.GetLostFrom(), k.GetLostTo())
						}
						lines = append(lines, []string{zone, k.GetName(), count(k.GetPosition()), lost})
					}
				}
				return a.print(out, func(w io.Writer) { rows(w, "ZONE SINK BLOCKS LOST", lines) })
			})
		}}
}

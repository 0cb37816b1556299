package adminapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

// Roles of operators.
const (
	RoleAdmin  = "admin"
	RoleViewer = "viewer"
)

// rights says what a procedure takes. What is not listed is denied: a new RPC is closed until somebody decides.
var rights = map[string]string{
	adminv1connect.ResourceServiceApplyProcedure:                     RoleAdmin,
	adminv1connect.ResourceServiceGetProcedure:                       RoleViewer,
	adminv1connect.ResourceServiceListProcedure:                      RoleViewer,
	adminv1connect.ResourceServiceDeleteProcedure:                    RoleAdmin,
	adminv1connect.KeyServiceCreateKeyProcedure:                      RoleAdmin,
	adminv1connect.KeyServiceRevokeKeyProcedure:                      RoleAdmin,
	adminv1connect.KeyServiceListKeysProcedure:                       RoleViewer,
	adminv1connect.NodeServiceListNodesProcedure:                     RoleViewer,
	adminv1connect.NodeServiceRemoveNodeProcedure:                    RoleAdmin,
	adminv1connect.NodeServiceCreateJoinTokenProcedure:               RoleAdmin,
	adminv1connect.NodeServiceLeadersProcedure:                       RoleViewer,
	adminv1connect.ClusterServiceListMembersProcedure:                RoleViewer,
	adminv1connect.ClusterServiceTransferLeadershipProcedure:         RoleAdmin,
	adminv1connect.ClusterServiceBackupProcedure:                     RoleAdmin,
	adminv1connect.BorderServiceStatusProcedure:                      RoleViewer,
	adminv1connect.BorderServiceSimulateProcedure:                    RoleViewer,
	adminv1connect.ApprovalServiceListApprovalsProcedure:             RoleViewer,
	adminv1connect.ApprovalServiceApproveProcedure:                   RoleAdmin,
	adminv1connect.ApprovalServiceRejectProcedure:                    RoleAdmin,
	adminv1connect.ApprovalServiceOpenCrossingsProcedure:             RoleAdmin,
	adminv1connect.DNSServiceExplainProcedure:                        RoleViewer,
	adminv1connect.UsageServiceQueryUsageProcedure:                   RoleViewer,
	adminv1connect.UsageServiceQueryTotalsProcedure:                  RoleViewer,
	adminv1connect.UsageServiceTraceUsageProcedure:                   RoleViewer,
	adminv1connect.CustomerServiceExportProcedure:                    RoleAdmin,
	adminv1connect.CustomerServiceEraseProcedure:                     RoleAdmin,
	adminv1connect.EvidenceServiceExportEvidenceProcedure:            RoleViewer,
	adminv1connect.EvidenceServiceExportRelayRowsProcedure:           RoleViewer,
	adminv1connect.EvidenceServiceCheckEvidenceProcedure:             RoleAdmin,
	adminv1connect.UsageServiceQueryLatencyProcedure:                 RoleViewer,
	adminv1connect.UsageServiceForecastProcedure:                     RoleViewer,
	adminv1connect.AlertServiceCreateWebhookProcedure:                RoleAdmin,
	adminv1connect.AlertServiceListWebhooksProcedure:                 RoleViewer,
	adminv1connect.AlertServiceDeleteWebhookProcedure:                RoleAdmin,
	adminv1connect.AlertServiceRotateWebhookSecretProcedure:          RoleAdmin,
	adminv1connect.AlertServiceListAlertsProcedure:                   RoleViewer,
	adminv1connect.LedgerServiceListEpochsProcedure:                  RoleViewer,
	adminv1connect.LedgerServiceCorrectProcedure:                     RoleAdmin,
	adminv1connect.LedgerServiceUndoCorrectionProcedure:              RoleAdmin,
	adminv1connect.LedgerServiceListCorrectionsProcedure:             RoleViewer,
	adminv1connect.LedgerServiceListPeriodsProcedure:                 RoleViewer,
	adminv1connect.LedgerServiceListRefusalsProcedure:                RoleViewer,
	adminv1connect.LedgerServiceListSinksProcedure:                   RoleViewer,
	adminv1connect.LedgerServiceCloseEpochProcedure:                  RoleAdmin,
	adminv1connect.QuotaServiceGetQuotasProcedure:                    RoleViewer,
	adminv1connect.QuotaServiceTopUpProcedure:                        RoleAdmin,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      RoleViewer,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": RoleViewer,
}

// TokenKey is where the operator of a bearer token rests. The token itself is stored nowhere; it is random
// and long, so a plain hash tells nothing, and looking it up by hash leaks no timing that could be steered.
func TokenKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return model.PrefixOperator + hex.EncodeToString(sum[:])
}

type operatorKey struct{}

// operator is the name of who calls, for records of what was done.
func operator(ctx context.Context) string {
	op, _ := ctx.Value(operatorKey{}).(model.Operator)
	return op.Name
}

// mayWrite says whether who calls is more than a viewer.
func mayWrite(ctx context.Context) bool {
	op, _ := ctx.Value(operatorKey{}).(model.Operator)
	return op.Role == RoleAdmin
}

// authorise runs before a body byte is decoded, on the dispatched procedure. It reads what this node has
// applied and nothing else: operators are let in while there is no quorum, when they are needed most.
func (s *server) authorise(ctx context.Context, spec connect.Spec, _ connect.Peer, h http.Header) (context.Context, error) {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return nil, rpcfault.ToConnect(fault.New(fault.Unauthenticated, "TOKEN_MISSING", "this call needs an operator's token: Authorization: Bearer <token>"))
	}
	local := s.Store.Local()
	kv, ok := local.Get(TokenKey(token))
	if !ok && local.Revision().Index == 0 {
		return nil, rpcfault.ToConnect(fault.New(fault.Unavailable, "NODE_NOT_CAUGHT_UP", "control node %s has not heard from zone %s yet and knows no operator: ask another node, or again", s.Node, s.Zone))
	}
	if !ok {
		return nil, rpcfault.ToConnect(fault.New(fault.Unauthenticated, "TOKEN_UNKNOWN", "zone %s does not know this operator's token", s.Zone))
	}
	op, err := model.Decode[model.Operator](model.PrefixOperator+"…", kv.Value)
	if err != nil {
		s.Logger.ErrorContext(ctx, "operator record unreadable", "err", err)
		return nil, rpcfault.ToConnect(err)
	}
	need, known := rights[spec.Procedure]
	if known && (op.Role == RoleAdmin || op.Role == need) {
		return context.WithValue(ctx, operatorKey{}, op), nil
	}
	return nil, rpcfault.ToConnect(fault.New(fault.Denied, "ROLE_INSUFFICIENT", "role %q may not call %s", op.Role, spec.Procedure))
}

// requests are compiled at start, so that no rule can fail to compile on a call.
func requests() []proto.Message {
	return []proto.Message{&adminv1.ApplyRequest{}, &adminv1.GetRequest{}, &adminv1.ListRequest{}, &adminv1.DeleteRequest{},
		&adminv1.CreateKeyRequest{}, &adminv1.RevokeKeyRequest{}, &adminv1.ListKeysRequest{}, &adminv1.RemoveNodeRequest{}, &adminv1.ApproveRequest{}, &adminv1.RejectRequest{}, &adminv1.OpenCrossingsRequest{}, &adminv1.ExplainDNSRequest{}, &adminv1.SimulateRequest{},
		&adminv1.CreateJoinTokenRequest{}, &adminv1.QueryUsageRequest{}, &adminv1.QueryTotalsRequest{},
		&adminv1.QueryLatencyRequest{}, &adminv1.ForecastRequest{}, &adminv1.CreateWebhookRequest{}, &adminv1.ListWebhooksRequest{}, &adminv1.DeleteWebhookRequest{}, &adminv1.RotateWebhookSecretRequest{}, &adminv1.ListAlertsRequest{},
		&adminv1.ListMembersRequest{}, &adminv1.TransferLeadershipRequest{}, &adminv1.BackupRequest{},
		&adminv1.ListEpochsRequest{}, &adminv1.CloseEpochRequest{},
		&adminv1.GetQuotasRequest{}, &adminv1.TopUpRequest{},
		&adminv1.CorrectRequest{}, &adminv1.UndoCorrectionRequest{}, &adminv1.ListCorrectionsRequest{},
		&adminv1.TraceUsageRequest{}, &adminv1.EraseRequest{}, &adminv1.ExportRequest{}, &adminv1.ExportEvidenceRequest{}}
}

// validation checks requests against the rules written in the proto files.
type validation struct{ protovalidate.Validator }

func (v validation) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if msg, ok := req.Any().(proto.Message); ok {
			if err := v.check(msg); err != nil {
				return nil, err
			}
		}
		return next(ctx, req)
	}
}

func (validation) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (validation) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next // the one stream, Export, checks its only field itself
}

func (v validation) check(msg proto.Message) error {
	err := v.Validate(msg)
	if err == nil {
		return nil
	}
	ve, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok || len(ve.Violations) == 0 {
		return fmt.Errorf("validate request: %w", err)
	}
	var first string
	var texts []string
	for i, violation := range ve.Violations {
		if i == 10 {
			texts = append(texts, fmt.Sprintf("and %d more", len(ve.Violations)-i))
			break
		}
		field := specPath(protovalidate.FieldPathString(violation.Proto.GetField()))
		if i == 0 {
			first = field
		}
		why := violation.Proto.GetMessage()
		if why == "" {
			why = "breaks rule " + violation.Proto.GetRuleId()
		}
		texts = append(texts, field+": "+why)
	}
	return fault.New(fault.Invalid, "FIELD_INVALID", "%s", strings.Join(texts, "; ")).At(first)
}

// specPath turns resources[0].api.routes[1].name into the manifest's resources[0].spec.routes[1].name.
func specPath(path string) string {
	head, rest, ok := strings.Cut(path, "].")
	if !ok || !strings.HasPrefix(head, "resources[") {
		return path
	}
	kind, tail, deeper := strings.Cut(rest, ".")
	if f := resourceFields.ByName(protoreflect.Name(kind)); f == nil || f.ContainingOneof() == nil {
		return path
	}
	if deeper {
		return head + "].spec." + tail
	}
	return head + "].spec"
}

var resourceFields = (&adminv1.Resource{}).ProtoReflect().Descriptor().Fields()

// jsonCodec speaks the field names of the proto files and of manifests, with unset fields written, so that
// what curl shows is what may be sent. An unknown field is refused: a misspelt one must not be dropped.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (jsonCodec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("marshal %T: not a message", v)
	}
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
}

func (jsonCodec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal %T: not a message", v)
	}
	if len(data) == 0 {
		return errors.New("an empty body is not a JSON object: send {}")
	}
	return protojson.Unmarshal(data, m)
}

// IsBinary lets Connect put messages into the query of a GET as text.
func (jsonCodec) IsBinary() bool { return false }

// MarshalStable is what Connect asks of a codec for GET requests.
func (c jsonCodec) MarshalStable(v any) ([]byte, error) { return c.Marshal(v) }

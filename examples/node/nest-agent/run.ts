// A vault key for the time of one request, as Nest writes it: an interceptor, and a parameter that hands over its run.
import {
  type CallHandler,
  createParamDecorator,
  type ExecutionContext,
  ForbiddenException,
  Inject,
  Injectable,
  type NestInterceptor,
} from "@nestjs/common";
import type { Request, Response } from "express";
import { denied, Keybrake, type Run } from "keybrake";
import { Observable } from "rxjs";

interface Requested extends Request {
  run?: Run;
}

const policy = {
  vendor: "stripe",
  daily_usd_cap: 1000,
  allowed_endpoints: ["refunds.create", "reads"],
  label: "support-agent",
} as const;

/** Opens a run for each request. Its key is revoked when the response is over or its client has gone away. */
@Injectable()
export class RunInterceptor implements NestInterceptor {
  constructor(@Inject(Keybrake) private readonly keybrake: Keybrake) {}

  async intercept(context: ExecutionContext, next: CallHandler): Promise<Observable<unknown>> {
    const http = context.switchToHttp();
    const [request, response] = [http.getRequest<Requested>(), http.getResponse<Response>()];
    const run = await this.open(`chat_${request.params.chat}`);
    request.run = run;
    const close = () => run.close().catch((error) => console.error("not revoked, ends when it expires:", error));
    if (response.closed) await close();
    else response.once("close", close);
    // The handler starts on subscription; it belongs to the run then.
    return new Observable((subscriber) => run.within(() => next.handle().subscribe(subscriber)));
  }

  private async open(run: string): Promise<Run> {
    try {
      return await this.keybrake.open({ policy, run, narrow: { run_usd_cap: 25 }, expiresIn: "15m" });
    } catch (error) {
      const refusal = denied(error); // no key is issued while a run is stopped
      // In words for whoever asked: the message names the operator and the reason.
      throw refusal ? new ForbiddenException(refusal.forModel()) : error;
    }
  }
}

/** The run of the request: `@CurrentRun() run: Run`. */
export const CurrentRun = createParamDecorator((_data: unknown, context: ExecutionContext) => {
  return context.switchToHttp().getRequest<Requested>().run;
});
